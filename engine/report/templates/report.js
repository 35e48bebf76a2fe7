"use strict";

// Sorting and filtering of the class table; without this script it is a plain table.
function makeSortable(table) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const text = row.cells[column].textContent.trim();
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
      const isDescending = header.getAttribute("aria-sort") === "ascending";
      const sign = isDescending ? -1 : 1;
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      rows.sort((a, b) => sign * compare(a[0], b[0]));
      body.append(...rows.map(([, row]) => row));
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
    });
  });
}

function makeFilter(input, table, status) {
  const rows = [...table.tBodies[0].rows].map((row) => [row.textContent.toLowerCase(), row]);
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    for (const [text, row] of rows) {
      row.hidden = !text.includes(wanted);
      shown += row.hidden ? 0 : 1;
    }
    status.textContent = `${shown} of ${rows.length} classes shown`;
  });
}

// The map: hovering names a class and shows where it lies; the list does so from the keyboard.
function makeMap(map, list, pictures, status) {
  const nothing = status.textContent;
  const show = (name) => {
    map.classList.toggle("chosen", name !== "");
    for (const group of map.querySelectorAll("[data-class]")) {
      group.classList.toggle("on", group.dataset.class === name);
    }
    const option = [...list.options].find((each) => each.value === name);
    status.textContent = name === "" ? nothing : option.textContent;
  };
  map.addEventListener("pointerover", (event) => {
    const group = event.target.closest("[data-class]");
    show(group ? group.dataset.class : list.value);
  });
  map.addEventListener("pointerleave", () => show(list.value));
  map.addEventListener("click", (event) => {
    const group = event.target.closest("[data-class]");
    list.value = group && group.dataset.class !== list.value ? group.dataset.class : "";
    show(list.value);
  });
  list.addEventListener("change", () => show(list.value));
  pictures.addEventListener("change", () => map.classList.toggle("bare", !pictures.checked));
}

const byId = (id) => document.getElementById(id);
makeSortable(byId("class-table"));
makeFilter(byId("class-filter"), byId("class-table"), byId("class-status"));
if (byId("map-drawing")) {
  makeMap(byId("map-drawing"), byId("map-list"), byId("map-pictures"), byId("map-status"));
}
document.querySelectorAll(".controls").forEach((controls) => { controls.hidden = false; });
