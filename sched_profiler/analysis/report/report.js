"use strict";
(() => {
  const root = document.documentElement;
  const page = JSON.parse(document.getElementById("data").textContent);
  const plots = [...document.querySelectorAll("[data-chart]")];
  const overTime = plots.filter((plot) => page.charts[plot.dataset.chart].overTime);
  const isTouch = matchMedia("(pointer: coarse)").matches;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const COLOURS = ["text", "dim", "grid", "rule", "sheet", "blue", "vermilion", "green", "orange", "sky", "purple", "grey"];
  let palette;

  function readPalette() {
    const style = getComputedStyle(root);
    palette = Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }

  // "blue" or "blue/0.3", from the palette.
  function colour(text) {
    const [name, alpha] = text.split("/");
    if (!(name in palette)) return text;
    const part = (at) => parseInt(palette[name].slice(at, at + 2), 16);
    return alpha ? `rgba(${part(1)},${part(3)},${part(5)},${alpha})` : palette[name];
  }

  function resolved(value, key = "") {
    if (key === "color" || key === "fillcolor") return colour(value);
    if ((key === "x" || key === "customdata") && typeof value === "string") return page.shared[value];
    if (Array.isArray(value)) return typeof value[0] === "object" && (key === "shapes" || key === "annotations") ? value.map((one) => resolved(one)) : value;
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, resolved(one, name)]));
  }

  function axis(own) {
    return {
      gridcolor: palette.grid, linecolor: palette.rule, zeroline: false, showspikes: false,
      tickfont: { size: 12 }, spikecolor: palette.dim, spikethickness: 1, spikedash: "solid",
      ...own, title: { standoff: 6, font: { size: 12, color: palette.dim }, ...own.title },
    };
  }

  function layout(spec) {
    const own = resolved(spec.layout);
    const hasLegend = spec.data.filter((trace) => trace.name && trace.showlegend !== false).length > 1;
    return {
      height: isTouch && hasLegend ? 280 : 250, hovermode: "x unified", dragmode: isTouch ? false : "zoom", uirevision: "kept",
      ...own,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: palette.sheet,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: palette.text },
      // The same left margin keeps what happened at the same time in one line.
      margin: { l: 58, r: 14, t: isTouch || hasLegend ? 32 : 14, b: spec.overTime ? 28 : 42 },
      xaxis: axis({ showspikes: spec.overTime, spikemode: "across", ...own.xaxis }),
      yaxis: axis({ fixedrange: spec.overTime, ...own.yaxis }),
      showlegend: hasLegend,
      legend: { orientation: "h", x: 0, font: { size: 12 }, ...(isTouch ? { y: -0.18, yanchor: "top" } : { y: 1.02, yanchor: "bottom" }) },
      hoverlabel: { bgcolor: palette.sheet, bordercolor: palette.rule, font: { color: palette.text, size: 12.5 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: palette.dim, activecolor: palette.text },
    };
  }

  function draw(plot) {
    const spec = page.charts[plot.dataset.chart];
    const looks = layout(spec);
    // "uirevision" keeps what the reader did, but not what another chart had this one do.
    if (spec.overTime && plot._fullLayout) looks.xaxis.range = [...plot._fullLayout.xaxis.range];
    return Plotly.react(plot, spec.data.map((trace) => resolved(trace)), looks, {
      responsive: true, displaylogo: false, displayModeBar: isTouch || "hover",
      modeBarButtons: [["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"], ["toImage"]].slice(isTouch ? 1 : 0),
      toImageButtonOptions: { filename: plot.dataset.chart, scale: 2 },
    });
  }

  async function drawAll() {
    readPalette();
    for (const plot of plots) {
      await draw(plot);
      await new Promise((done) => setTimeout(done));
    }
  }

  // What one chart over time shows, the others show.
  function follow(plot) {
    plot.on("plotly_relayout", (change) => {
      const from = change["xaxis.range[0]"] ?? change["xaxis.range"]?.[0];
      const to = change["xaxis.range[1]"] ?? change["xaxis.range"]?.[1];
      const isReset = change["xaxis.autorange"] === true;
      if (from === undefined && !isReset) return;
      for (const other of overTime) {
        if (other === plot) continue;
        const shown = other._fullLayout.xaxis;
        if (isReset ? !shown.autorange : shown.range[0] !== from || shown.range[1] !== to) {
          Plotly.relayout(other, isReset ? { "xaxis.autorange": true } : { "xaxis.range": [from, to] });
        }
      }
    });
  }

  function show(at) {
    if (!overTime.length || !overTime[0]._fullLayout) return;
    const ends = overTime[0].data.flatMap((trace) => [trace.x[0], trace.x[trace.x.length - 1]]);
    const half = Math.max((Math.max(...ends) - Math.min(...ends)) / 60, 1e-3);
    for (const plot of overTime) {
      const shapes = resolved(page.charts[plot.dataset.chart].layout).shapes.concat({
        type: "line", yref: "paper", y0: 0, y1: 1, x0: at, x1: at,
        line: { color: palette.text, width: 1, dash: "dash" },
      });
      Plotly.relayout(plot, { "xaxis.range": [at - half, at + half], shapes });
    }
    overTime[0].closest("figure").scrollIntoView();
  }

  function sortable(table) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      const key = (row) => {
        const cell = row.cells[column];
        const text = cell.dataset.value ?? cell.textContent.trim();
        const number = Number(text.replace(/[,%]/g, ""));
        return text === "" || Number.isNaN(number) ? text : number;
      };
      button.addEventListener("click", () => {
        const falls = head.getAttribute("aria-sort") !== "descending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", falls ? "descending" : "ascending");
        const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
        body.append(...[...body.rows].sort((a, b) => order(key(a), key(b)) * (falls ? -1 : 1)));
      });
    });
  }

  async function loadPlotly() {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  document.getElementById("theme").addEventListener("click", () => {
    const isDark = (root.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
    root.dataset.theme = isDark ? "light" : "dark";
    if (window.Plotly) drawAll();
  });
  prefersDark.addEventListener("change", () => {
    if (!root.dataset.theme && window.Plotly) drawAll();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".batch");
    if (button) show(Number(button.dataset.at));
  });
  document.querySelectorAll(".sortable").forEach(sortable);

  if (!("DecompressionStream" in window)) {
    const note = document.getElementById("no-charts");
    note.textContent = "This browser is too old for the charts; one from 2023 or later shows them.";
    note.hidden = false;
    return;
  }
  loadPlotly().then(drawAll).then(() => {
    overTime.forEach(follow);
    root.dataset.drawn = "true";
  });
})();
