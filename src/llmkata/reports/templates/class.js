// Sorting: the buttons in the heads of tables. Each cell brings its sort key in data-key; texts sort as texts.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  for (const head of table.tHead.rows[0].cells) {
    const button = head.querySelector("button");
    if (!button) continue;
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("num");
      const first = numeric ? "descending" : "ascending";
      const other = numeric ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      for (const cell of table.tHead.rows[0].cells) if (cell.hasAttribute("aria-sort")) cell.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => row.cells[head.cellIndex].dataset.key;
      const rows = [...body.rows];
      rows.sort((a, b) => sign * (numeric ? key(a) - key(b) : key(a).localeCompare(key(b))));
      body.append(...rows);
    });
  }
}
// The search field leaves only the learners whose name holds what was typed.
const search = document.querySelector("#search");
if (search) {
  search.closest(".search").hidden = false;
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    let shown = 0;
    for (const row of document.querySelectorAll("#heat tbody tr")) {
      row.hidden = !row.cells[0].dataset.key.includes(wanted);
      shown += !row.hidden;
    }
    document.querySelector("#shown").textContent = `${shown} shown`;
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((fold) => { fold.open = true; }));
