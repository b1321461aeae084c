const table = document.querySelector("#rows");
const body = table.tBodies[0];
const rows = [...body.rows];
const text = (row, column) => row.cells[column].textContent.trim();

for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    rows.sort((a, b) => (up ? 1 : -1) *
      text(a, column).localeCompare(text(b, column), undefined, { numeric: true }));
    body.append(...rows);
  });
}

const search = document.querySelector("#search");
const found = document.querySelector("#found");
search.closest("[hidden]").hidden = false;
search.addEventListener("input", () => {
  const wanted = search.value.toLowerCase();
  let shown = 0;
  for (const row of rows) {
    row.hidden = ![0, 1, 2].some((column) => text(row, column).toLowerCase().includes(wanted));
    shown += !row.hidden;
  }
  found.textContent = wanted ? `${shown} of ${rows.length} rows` : "";
});
