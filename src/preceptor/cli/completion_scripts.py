"""The completion scripts of bash, zsh and fish, from what the commands' parsers accept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from preceptor.cli.command import Command
from preceptor.cli.described import Accepted, described, options_of, positionals_of

_TOP = ("--help", "--version")

# The names below `stages:` at the first depth of the recipe that is on the command line.
_AWK = r"""/^stages:/ { inside = 1; next } /^[^ #]/ { inside = 0 } inside && match($0, /^ +[A-Za-z0-9_.-]+:/) {
    depth = match($0, /[^ ]/); if (!first) first = depth
    if (depth == first) { name = substr($0, depth); sub(/:.*/, "", name); print name }
}"""


def script(shell: str, commands: Sequence[Command]) -> str:
    """The script for a shell, one of bash, zsh and fish."""
    makers: dict[str, Callable[[Sequence[Command]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    return makers[shell](commands)


# --- bash -----------------------------------------------------------------------------------------------------------


def _bash(commands: Sequence[Command]) -> str:
    names = " ".join(command.name for command in commands)
    following: dict[str, list[str]] = {}
    flags, places = [], []
    for command in commands:
        accepted = described(command)
        for option in options_of(accepted):
            if option.value != "none":
                following.setdefault(_bash_value(option), []).extend(f'"{command.name} {f}"' for f in option.flags)
        words = " ".join(flag for option in options_of(accepted) for flag in option.flags)
        flags.append(f'        {command.name}) words="{words}" ;;')
        for place, argument in enumerate(positionals_of(accepted)):
            if argument.words:
                places.append(f'        "{command.name} {place}") words="{" ".join(argument.words)}" ;;')
    cases = [f"        {'|'.join(patterns)}) {what}return ;;" for what, patterns in following.items()]
    return f"""\
# Completes preceptor's words in bash; made by `preceptor completion bash`.
_preceptor_stages() {{
    local word
    for word in "${{COMP_WORDS[@]:2}}"; do
        case "$word" in *.yaml|*.yml) [ -f "$word" ] && awk '{_AWK}' "$word" && return ;; esac
    done
}}
_preceptor_words() {{
    COMPREPLY=($(compgen -W "$1" -- "$current"))
    compopt +o default 2> /dev/null
}}
_preceptor() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
    local words="" word place=-1
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        _preceptor_words "{names} help {" ".join(_TOP)}"
        return
    fi
    # Nothing in COMPREPLY: bash completes names of files by itself.
    case "$command $previous" in
{chr(10).join(cases)}
        "help help") _preceptor_words "{names}"; return ;;
    esac
    case "$command" in
{chr(10).join(flags)}
    esac
    case "$current" in -*) _preceptor_words "$words"; return ;; esac
    for word in "${{COMP_WORDS[@]:2:COMP_CWORD-1}}"; do case "$word" in -*) ;; *) place=$((place + 1)) ;; esac; done
    words=""
    case "$command $place" in
{chr(10).join(places)}
    esac
    if [ -n "$words" ]; then _preceptor_words "$words"; fi
}}
complete -o default -F _preceptor preceptor"""


def _bash_value(option: Accepted) -> str:
    if option.value == "stage":
        return '_preceptor_words "$(_preceptor_stages)"; '
    if option.value == "word":
        return f'_preceptor_words "{" ".join(option.words)}"; '
    return "" if option.value in ("file", "folder") else '_preceptor_words ""; '


# --- zsh ------------------------------------------------------------------------------------------------------------


def _zsh(commands: Sequence[Command]) -> str:
    described_commands = "\n".join(f"        {_quoted(f'{each.name}:{each.summary}')}" for each in commands)
    cases = []
    for command in commands:
        accepted = described(command)
        lines = [_zsh_option(option) for option in options_of(accepted)]
        for argument in positionals_of(accepted):
            number = "*" if argument.repeats else ""
            lines.append(_quoted(f"{number}:{_zsh_text(argument.name)}:{_zsh_action(argument)}"))
        body = " \\\n                ".join(lines)
        cases.append(f"        {command.name})\n            _arguments -s -S \\\n                {body} ;;")
    return f"""\
#compdef preceptor
# Completes preceptor's words in zsh; made by `preceptor completion zsh`.
_preceptor_stages() {{
    local word
    local -a stages
    for word in $words; do
        if [[ $word == *.(yaml|yml) && -f $word ]]; then
            stages=(${{(f)"$(awk '{_AWK}' $word)"}})
            compadd -a stages
            return
        fi
    done
}}
_preceptor() {{
    local -a commands
    commands=(
{described_commands}
        'help:explain a command'
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        compadd -- {" ".join(_TOP)}
        return
    fi
    local command=$words[2]
    words=("${{words[@]:1}}")
    (( CURRENT-- ))
    case $command in
{chr(10).join(cases)}
        help)
            _describe command commands ;;
    esac
}}
if [[ $funcstack[1] == _preceptor ]]; then _preceptor "$@"; else compdef _preceptor preceptor; fi"""


def _zsh_option(option: Accepted) -> str:
    many = "*" if option.repeats else f"({' '.join(option.flags)})"
    value = "" if option.value == "none" else f":{_zsh_text(option.name)}:{_zsh_action(option)}"
    specs = [_quoted(f"{many}{flag}[{_zsh_text(option.help)}]{value}") for flag in option.flags]
    return " \\\n                ".join(specs)


def _zsh_action(accepted: Accepted) -> str:
    if accepted.value == "word":
        return f"({' '.join(accepted.words)})"
    return {"file": "_files", "folder": "_files", "stage": "_preceptor_stages"}.get(accepted.value, " ")


def _zsh_text(text: str) -> str:
    return "".join(f"\\{character}" if character in "[]:\\" else character for character in text)


def _quoted(text: str) -> str:
    """In single quotes, for zsh and bash."""
    return "'" + text.replace("'", "'\\''") + "'"


# --- fish -----------------------------------------------------------------------------------------------------------


def _fish(commands: Sequence[Command]) -> str:
    names = " ".join(command.name for command in commands)
    lines = [
        "# Completes preceptor's words in fish; made by `preceptor completion fish`.",
        "function __preceptor_stages",
        "    for word in (commandline -opc)",
        "        if string match -qr '\\.ya?ml$' -- $word; and test -f $word",
        f"            awk '{_AWK}' $word",
        "            return",
        "        end",
        "    end",
        "end",
        f"complete -c preceptor -n __fish_use_subcommand -f -a help -d {_fish_quoted('explain a command')}",
        f"complete -c preceptor -n '__fish_seen_subcommand_from help' -f -a {_fish_quoted(names)}",
    ]
    lines += [f"complete -c preceptor -n __fish_use_subcommand -f -l {flag[2:]}" for flag in _TOP]
    for command in commands:
        lines.append(
            f"complete -c preceptor -n __fish_use_subcommand -f -a {command.name} -d {_fish_quoted(command.summary)}"
        )
        accepted = described(command)
        condition = f"-n '__fish_seen_subcommand_from {command.name}'"
        for option in options_of(accepted):
            flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
            lines.append(
                f"complete -c preceptor {condition} {flags}{_fish_value(option)} -d {_fish_quoted(option.help)}"
            )
        words = [word for argument in positionals_of(accepted) for word in argument.words]
        if words:
            lines.append(f"complete -c preceptor {condition} -a {_fish_quoted(' '.join(words))}")
    return "\n".join(lines)


def _fish_value(option: Accepted) -> str:
    if option.value == "stage":
        return " -x -a '(__preceptor_stages)'"
    if option.value == "word":
        return f" -x -a {_fish_quoted(' '.join(option.words))}"
    return {"none": " -f", "free": " -x"}.get(option.value, " -r -F")


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
