"""Files, locks, signals and the terminal, as the operating system gives them."""
