// What rows rest on, behind their names; without this script all of it is shown.
function makeOpeners(table, openAll) {
  const openers = [...table.querySelectorAll(".opener")];
  const aboutOf = (opener) => byId(opener.getAttribute("aria-controls"));
  const isOpen = (opener) => opener.getAttribute("aria-expanded") === "true";
  const set = (opener, open) => {
    opener.setAttribute("aria-expanded", String(open));
    aboutOf(opener).hidden = !open;
    openAll.textContent = openers.every(isOpen) ? "Close all rows" : "Open all rows";
  };
  for (const opener of openers) {
    set(opener, false);
    opener.addEventListener("click", () => set(opener, !isOpen(opener)));
  }
  openAll.addEventListener("click", () => {
    const open = !openers.every(isOpen);
    openers.forEach((opener) => set(opener, open));
  });
}

// The order of the board, in which a first stage for as long stands below its two stages.
function makeReset(table, button) {
  const bodies = [...table.tBodies];
  const headers = [...table.tHead.rows[0].cells];
  table.tHead.addEventListener("click", () => {
    button.disabled = !headers.some((header) => header.hasAttribute("aria-sort"));
  });
  button.addEventListener("click", () => {
    table.append(...bodies);
    headers.forEach((header) => header.removeAttribute("aria-sort"));
    button.disabled = true;
  });
}

function makeCopies(buttons) {
  for (const button of buttons) {
    const label = button.textContent;
    const code = button.closest(".command").querySelector("code");
    button.hidden = false;
    button.addEventListener("click", async () => {
      let isCopied = true;
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch { // a browser that gives files no clipboard
        getSelection().selectAllChildren(code);
        isCopied = document.execCommand("copy");
      }
      button.textContent = isCopied ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = label; }, 2000);
    });
  }
}

// Round values from low to high, about as many as wanted.
function ticksOf(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= rough);
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) ticks.push(n * step + 0);
  return ticks;
}

function element(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function makeCurves(all, chart, legend, measure, status) {
  const labels = [...legend.querySelectorAll("label")];
  const inputs = labels.map((label) => label.querySelector("input"));
  const short = new Intl.NumberFormat("en", { notation: "compact" });
  const plain = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
  const margin = { left: 48, right: 14, top: 10, bottom: 40 };

  const draw = () => {
    const name = measure.value;
    const factor = name === "recall" ? 100 : 1;
    labels.forEach((label, n) => label.classList.toggle("lacking", !(name in all[n])));
    const chosen = inputs.flatMap((input, n) => (input.checked && name in all[n] ? [n] : []));
    const lacking = inputs.filter((input, n) => input.checked && !(name in all[n])).length;
    const few = `${chosen.length} of ${all.length} rows drawn`;
    status.textContent = lacking ? `${few}; ${lacking} without such a curve` : few;

    const width = Math.max(300, Math.min(960, chart.clientWidth || 720));
    const height = Math.round(Math.max(260, width * 0.5));
    const right = width - margin.right;
    const bottom = height - margin.bottom;
    const points = chosen.flatMap((n) => all[n][name]);
    const values = points.map(([, value]) => factor * value);
    const last = Math.max(1, ...points.map(([images]) => images));
    const high = Math.max(...values, name === "loss" ? -Infinity : 0) || 0;
    const low = Math.min(0, ...values);
    const top = Number.isFinite(high) && high > low ? high : low + 1;
    const across = (images) => margin.left + (images / last) * (right - margin.left);
    const up = (value) => bottom - ((value - low) / (top - low)) * (bottom - margin.top);

    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
    const title = `${measure.selectedOptions[0].textContent}, over images seen`;
    svg.setAttribute("aria-label", title);
    for (const tick of ticksOf(low, top, 5)) {
      svg.append(element("path", { class: "tick", d: `M${margin.left} ${up(tick)}H${right}` }));
      const place = { x: margin.left - 6, y: up(tick) + 4, "text-anchor": "end" };
      svg.append(element("text", place, plain.format(tick)));
    }
    for (const tick of ticksOf(0, last, width < 480 ? 3 : 6)) {
      const place = { x: across(tick), y: bottom + 16, "text-anchor": "middle" };
      svg.append(element("text", place, short.format(tick)));
    }
    const middle = { x: (margin.left + right) / 2, y: height - 5, "text-anchor": "middle", class: "name" };
    svg.append(element("text", middle, name === "recall" ? "images seen (recall in percent)" : "images seen"));
    for (const n of chosen) {
      const kind = `${[...labels[n].classList].filter((each) => each !== "lacking").join(" ")}`;
      const group = element("g", { class: kind, "data-row": n });
      const places = all[n][name].map(([images, value]) => [across(images).toFixed(1), up(factor * value).toFixed(1)]);
      group.append(element("path", { d: `M${places.map((place) => place.join(" ")).join("L")}` }));
      const [x, y] = places[places.length - 1];
      group.append(element("circle", { cx: x, cy: y, r: 3.5 }));
      group.append(element("title", {}, labels[n].textContent.trim()));
      svg.append(group);
    }
    chart.replaceChildren(svg);
  };

  const highlight = (label) => {
    const row = label && String(labels.indexOf(label));
    for (const group of chart.querySelectorAll("[data-row]")) {
      group.classList.toggle("faint", Boolean(row) && group.dataset.row !== row);
    }
  };
  legend.addEventListener("change", draw);
  measure.addEventListener("change", draw);
  legend.addEventListener("pointerover", (event) => highlight(event.target.closest("label:has(:checked)")));
  legend.addEventListener("pointerleave", () => highlight(null));
  byId("none").addEventListener("click", () => {
    inputs.forEach((input) => { input.checked = false; });
    draw();
  });
  let width = 0;
  new ResizeObserver(() => {
    if (chart.clientWidth !== width) {
      width = chart.clientWidth;
      draw();
    }
  }).observe(chart);
  draw();
}

const byId = (id) => document.getElementById(id);
makeSortable(byId("board"));
makeReset(byId("board"), byId("reset"));
makeOpeners(byId("board"), byId("open-all"));
makeCopies(document.querySelectorAll(".copy"));
document.querySelectorAll(".controls").forEach((controls) => { controls.hidden = false; });
if (byId("chart")) {
  const all = JSON.parse(byId("curves-data").textContent);
  makeCurves(all, byId("chart"), document.querySelector(".legend"), byId("measure"), byId("curves-status"));
}
