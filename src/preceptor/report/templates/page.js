// Sorting, filtering and the theme. Everything is in the page already: without this script it can be read all the same.
(() => {
  "use strict";
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  const theme = byId("theme");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const nameTheme = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", `${theme.textContent} theme`);
  };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });
  systemDark.addEventListener("change", nameTheme);
  nameTheme();

  // Cells without a value stay last, whichever way a column is sorted.
  const compare = (a, b, sign, numeric) => {
    if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1;
    return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
  };
  const sort = (table, header, column) => {
    const numeric = header.classList.contains("number");
    const before = header.getAttribute("aria-sort");
    const ascending = before ? before === "descending" : !numeric;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = table.tBodies[0];
    const key = (row) => row.cells[column].getAttribute("data-order");
    const rows = [...body.rows].sort((a, b) => compare(key(a), key(b), ascending ? 1 : -1, numeric));
    body.append(...rows);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    if (table.tBodies[0].rows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => sort(table, header, column));
    });
  }

  // Boxes that have nothing to scroll are no stops on the keyboard's way through the page.
  const boxes = [...document.querySelectorAll(".scroll[tabindex]")];
  const stops = () => {
    const wide = boxes.map((box) => box.scrollWidth > box.clientWidth);
    boxes.forEach((box, place) => (box.tabIndex = wide[place] ? 0 : -1));
  };
  addEventListener("resize", stops);
  addEventListener("toggle", stops, true);
  stops();

  const filter = byId("filter");
  if (filter) {
    const printed = 10;
    const first = 25;
    const more = byId("filter-more");
    let limit = first;
    const list = [...document.querySelectorAll(".example")];
    const texts = new Map();
    const textOf = (example) => {
      if (!texts.has(example)) texts.set(example, example.textContent.toLowerCase());
      return texts.get(example);
    };
    const apply = () => {
      const words = byId("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
      const [kind, task, model] = ["kind", "task", "model"].map((name) => byId(`filter-${name}`).value);
      const shown = {};
      let count = 0;
      for (const example of list) {
        const { kind: its, task: about, models } = example.dataset;
        const fits =
          (!kind || its === kind) &&
          (!task || about === task) &&
          (!model || models.split(" ").includes(model)) &&
          words.every((word) => textOf(example).includes(word));
        example.hidden = !fits;
        if (!fits) continue;
        count += 1;
        example.classList.toggle("later", count > limit);
        shown[its] = (shown[its] || 0) + 1;
        example.classList.toggle("unprinted", shown[its] > printed);
      }
      byId("filter-count").textContent = `${count} of ${list.length}`;
      more.hidden = count <= limit;
      more.textContent = `Show ${Math.min(100, count - limit)} more`;
    };
    filter.hidden = false;
    filter.addEventListener("input", () => {
      limit = first;
      apply();
    });
    more.addEventListener("click", () => {
      const next = list.find((example) => !example.hidden && example.classList.contains("later"));
      limit += 100;
      apply();
      next.querySelector("summary").focus();
    });
    filter.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  // Paper cannot be clicked: what is folded is opened for it, and folded again afterwards.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open]):not(.unprinted)")];
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });
})();
