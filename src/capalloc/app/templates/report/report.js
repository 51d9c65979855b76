function sortable(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const text = (row, column) => (row.cells[column].firstChild?.textContent ?? "").trim();
  const numeric = (row, column) => {
    const found = parseFloat(text(row, column).replace(/,/g, "").replace(MINUS, "-"));
    return Number.isNaN(found) ? -Infinity : found;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numbers = column > 0 && rows.some((row) => numeric(row, column) > -Infinity);
      const ways = numbers ? ["descending", "ascending"] : ["ascending", "descending"];
      const way = [...ways, null][ways.indexOf(head.getAttribute("aria-sort")) + 1];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (way) head.setAttribute("aria-sort", way);
      const sign = way === "descending" ? -1 : 1;
      const compare = numbers
        ? (a, b) => sign * (numeric(a, column) - numeric(b, column) || 0)
        : (a, b) => sign * text(a, column).localeCompare(text(b, column), "en", { numeric: true });
      body.append(...(way ? [...rows].sort(compare) : rows));
    });
  });
}

const explorers = new Map();
for (const root of document.querySelectorAll("[data-explorer]")) {
  explorers.set(root.dataset.explorer, new Explorer(root, data.explorers[root.dataset.explorer]));
}
for (const head of document.querySelectorAll("th[data-layer]")) {
  const explorer = explorers.get(head.closest("[data-for]").dataset.for);
  const button = document.createElement("button");
  button.type = "button";
  button.className = "pick";
  button.setAttribute("aria-pressed", "false");
  button.append(...head.childNodes);
  button.title = button.textContent;
  head.append(button);
  button.addEventListener("click", () => {
    const layer = Number(head.dataset.layer);
    explorer.choose(explorer.layer === layer ? null : layer);
    explorer.root.scrollIntoView({ block: "start" });
  });
}
document.querySelectorAll("table.sortable").forEach(sortable);

// A box whose table is wider fades where it goes on, and says so; one whose table is longer says so.
for (const box of document.querySelectorAll(".scroll")) {
  const hint = document.createElement("p");
  hint.className = "goes-on";
  box.before(hint);
  const see = () => {
    const left = box.scrollWidth - box.clientWidth;
    const ways = [...(left < 2 ? [] : ["to the right →"]), ...(box.scrollHeight - box.clientHeight < 2 ? [] : ["below ↓"])];
    hint.hidden = !ways.length;
    hint.textContent = `Scroll the table: it goes on ${ways.join(" and ")}`;
    box.classList.toggle("more-right", box.scrollLeft < left - 1);
    box.classList.toggle("more-left", left > 1 && box.scrollLeft > 1);
  };
  box.addEventListener("scroll", see, { passive: true });
  new ResizeObserver(see).observe(box);
  see();
}

const redraw = () => explorers.forEach((explorer) => explorer.draw());
const theme = document.querySelector(".theme");
theme.hidden = false;
theme.addEventListener("change", (event) => {
  document.documentElement.dataset.theme = event.target.value;
  redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
