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

makeSortable(byId("class-table"));
if (byId("map-drawing")) {
  makeMap(byId("map-drawing"), byId("map-list"), byId("map-pictures"), byId("map-status"));
}
