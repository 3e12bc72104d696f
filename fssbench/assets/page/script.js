// Sorting, filtering, the way from a number to its record, the theme. Without it the page still shows everything.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const status = document.getElementById("status");

  // Sorting: a button in each head; empty cells always last; reported rows stay among themselves, below.
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "") || 0;
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };
  const sort = (head) => {
    const table = head.closest("table"), column = head.cellIndex;
    const first = head.classList.contains("word") || head.dataset.first === "ascending" ? "ascending" : "descending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const th of all("th", table.tHead)) th.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows].map((row, place) => ({ row, place, key: value(row, column) }));
    rows.sort((a, b) => {
      const kind = a.row.classList.contains("reported") - b.row.classList.contains("reported");
      if (kind) return kind;
      if (a.key === "" || b.key === "") return compare(a.key, b.key) || a.place - b.place;
      return sign * compare(a.key, b.key) || a.place - b.place;
    });
    table.tBodies[0].append(...rows.map((item) => item.row));
    status.textContent = `Sorted by ${head.textContent.trim()}, ${order}.`;
  };
  for (const button of all("th button")) button.addEventListener("click", () => sort(button.closest("th")));

  // Filtering: words against a row's text, choices against its table.
  const inputs = all(".filters [name]");
  const filter = () => {
    const wanted = Object.fromEntries(inputs.map((i) => [i.name, i.type === "checkbox" ? i.checked : i.value]));
    const words = wanted.words.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const section of all("section.table")) {
      const fits = ["dataset", "shot", "track"].every((name) => !wanted[name] || section.dataset[name] === wanted[name]);
      let rows = 0;
      for (const row of all(".board tbody tr", section)) {
        const kind = !row.classList.contains("reported") || wanted.reported;
        const visible = fits && kind && words.every((word) => row.textContent.toLowerCase().includes(word));
        row.classList.toggle("hidden", !visible);
        rows += visible;
      }
      section.classList.toggle("hidden", !fits || rows === 0);
      shown += section.classList.contains("hidden") ? 0 : rows;
    }
    status.textContent = `${shown} rows shown.`;
  };
  for (const input of inputs) input.addEventListener("input", filter);

  // A link to a record opens it, and whatever it lies in.
  const open = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    target.scrollIntoView();
    target.querySelector("summary")?.focus({ preventScroll: true });
  };
  addEventListener("hashchange", open);
  open();

  for (const button of all("button.copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        status.textContent = "Copied.";
      } catch {
        getSelection().selectAllChildren(code);
        status.textContent = "Selected; copy it with the keyboard.";
      }
    });
  }

  const theme = document.getElementById("theme");
  theme.addEventListener("change", () => {
    if (theme.value) document.documentElement.dataset.theme = theme.value;
    else delete document.documentElement.dataset.theme;
  });
})();
