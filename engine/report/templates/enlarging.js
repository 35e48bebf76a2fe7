// Enlarging: a click or Enter on a picture shows it large, and the arrow keys those beside it.
function makeEnlarging(dialog) {
  const figure = dialog.querySelector("figure");
  const caption = dialog.querySelector("figcaption");
  let beside = [];
  let place = 0;
  const show = (next) => {
    place = (next + beside.length) % beside.length;
    const image = beside[place].querySelector("img").cloneNode();
    image.className = "";
    figure.replaceChildren(image, caption);
    caption.textContent = beside[place].dataset.caption;
  };
  document.addEventListener("click", (event) => {
    const picture = event.target.closest(".enlarge");
    if (picture === null) return;
    beside = [...picture.closest("article, table").querySelectorAll(".enlarge")];
    show(beside.indexOf(picture));
    dialog.showModal();
  });
  dialog.addEventListener("click", (event) => {
    const step = event.target.dataset.step;
    if (step === "0" || event.target === dialog) dialog.close();
    else if (step !== undefined) show(place + Number(step));
  });
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step !== undefined) show(place + step);
  });
}

// A field that leaves those units standing that hold what is typed; without this script all stand.
function makeFilter(input, units, status, what) {
  const texts = units.map((unit) => [`${unit.textContent} ${unit.title}`.toLowerCase(), unit]);
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    for (const [text, unit] of texts) {
      unit.hidden = !text.includes(wanted);
      shown += unit.hidden ? 0 : 1;
    }
    status.textContent = `${shown} of ${units.length} ${what} shown`;
  });
}

const byId = (id) => document.getElementById(id);
makeEnlarging(byId("enlarged"));
for (const input of document.querySelectorAll("input[data-units]")) {
  const units = [...document.querySelectorAll(input.dataset.units)];
  makeFilter(input, units, byId(input.getAttribute("aria-describedby")), input.dataset.what);
}
document.querySelectorAll(".controls").forEach((controls) => { controls.hidden = false; });
