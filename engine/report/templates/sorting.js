"use strict";

// Sorting of a table by a click on a header; without this script it is a plain table. What moves
// are its rows, or its groups of them where it is of the class "grouped", by their first row. A
// cell may have its key in data-sort; where that is empty the row comes last in both directions.
function makeSortable(table) {
  const body = table.tBodies[0];
  const isGrouped = table.classList.contains("grouped");
  const headers = [...table.tHead.rows[0].cells];
  const key = (unit, column) => {
    const cell = (isGrouped ? unit.rows[0] : unit).cells[column];
    const text = cell.dataset.sort ?? cell.textContent.trim();
    return headers[column].classList.contains("number") ? parseFloat(text) : text.toLowerCase();
  };
  const collator = new Intl.Collator(undefined, { numeric: true });
  const compare = (a, b) => (typeof a === "number" ? a - b : collator.compare(a, b));

  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const former = header.getAttribute("aria-sort");
      const isFirst = former === null && header.dataset.first === "descending";
      const isDescending = former === "ascending" || isFirst;
      const sign = isDescending ? -1 : 1;
      const units = [...(isGrouped ? table.tBodies : body.rows)];
      const keyed = units.map((unit) => [key(unit, column), unit]);
      const rows = keyed.filter(([value]) => !Number.isNaN(value));
      rows.sort((a, b) => sign * compare(a[0], b[0]));
      rows.push(...keyed.filter(([value]) => Number.isNaN(value)));
      (isGrouped ? table : body).append(...rows.map(([, unit]) => unit));
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
    });
  });
}
