// Sorting: the buttons in the heads of tables. Each cell brings its sort key in data-key; texts sort as texts.
const texts = new Intl.Collator(undefined, { numeric: true });
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
      const keyed = [...body.rows].map((row) => [row.cells[head.cellIndex].dataset.key, row]);
      keyed.sort(([a], [b]) => sign * (numeric ? a - b : texts.compare(a, b)));
      body.append(...keyed.map(([, row]) => row));
      narrow();
    });
  }
}
// The filters leave learners by name and standing, and of an exercise its column and what the other tables say of it.
const form = document.querySelector("div.search");
const fields = form ? [...form.querySelectorAll("input, select")] : [];
const heat = document.querySelector("#heat");
const columnRule = new CSSStyleSheet();
document.adoptedStyleSheets = [columnRule];
let others = "";
const wanted = (id) => (form ? form.querySelector(id).value : "");
function narrow() {
  const exercise = wanted("#exercise");
  for (const table of document.querySelectorAll("table.grid:not(#heat)")) {
    // A long list shows its first rows, until one exercise is asked for or all are.
    const most = exercise || table.hasAttribute("data-all") ? Infinity : Number(table.dataset.most || Infinity);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const hidden = (exercise && row.dataset.exercise !== exercise) || shown >= most;
      if (row.hidden !== hidden) row.hidden = hidden;
      shown += !hidden;
    }
    table.closest("section").classList.toggle("empty", !shown);
    const more = table.closest("section").querySelector(".more");
    if (more) more.hidden = most === Infinity || table.tBodies[0].rows.length <= most;
  }
}
function pick() {
  const name = wanted("#search").toLowerCase();
  const standing = wanted("#standing");
  const exercise = wanted("#exercise");
  const columns = [...heat.tHead.rows[0].cells];
  const chosen = columns.findIndex((cell) => exercise && cell.dataset.exercise === exercise);
  let shown = 0;
  for (const row of heat.tBodies[0].rows) {
    const cells = chosen < 0 ? [...row.cells].slice(2) : [row.cells[chosen]];
    const hidden = !row.cells[0].dataset.key.includes(name) || Boolean(standing && !cells.some((cell) => cell.classList.contains("s-" + standing)));
    if (row.hidden !== hidden) row.hidden = hidden;
    shown += !hidden;
  }
  // One rule for all cells: setting each of them takes longer than all the rest.
  const rule = chosen < 0 ? "" : `#heat tr > :nth-child(n + 3):not(:nth-child(${chosen + 1})) { display: none; }`;
  if (rule !== others) columnRule.replaceSync((others = rule));
  form.querySelector("#shown").textContent = name || standing ? `${shown} shown` : "";
}
if (form) {
  form.hidden = false;
  for (const field of fields) field.addEventListener("input", () => { pick(); if (field.id === "exercise") narrow(); });
  form.querySelector("button").addEventListener("click", () => {
    for (const field of fields) field.value = "";
    pick();
    narrow();
  });
}
for (const place of document.querySelectorAll(".more")) {
  const table = place.closest("section").querySelector("table");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = `Show all ${table.tBodies[0].rows.length}`;
  button.addEventListener("click", () => { table.setAttribute("data-all", ""); narrow(); });
  place.append(button);
}
narrow();
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((fold) => { fold.open = true; }));
