// The filter of the class table; without this script it is a plain table.
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
