"""The report's script: sorting, copying and the colour scheme. Without it the page is complete, only still."""

from __future__ import annotations

SCRIPT = """
"use strict";
(function () {
  var root = document.documentElement;
  var schemes = ["auto", "light", "dark"];
  var chosen = "auto";
  try { chosen = localStorage.getItem("ewq-gguf-scheme") || "auto"; } catch (error) { chosen = "auto"; }
  if (schemes.indexOf(chosen) < 0) { chosen = "auto"; }
  var toggle = document.getElementById("scheme");
  function apply() {
    if (chosen === "auto") { root.removeAttribute("data-theme"); } else { root.setAttribute("data-theme", chosen); }
    toggle.textContent = "Colours: " + chosen;
  }
  toggle.hidden = false;
  toggle.addEventListener("click", function () {
    chosen = schemes[(schemes.indexOf(chosen) + 1) % schemes.length];
    try { localStorage.setItem("ewq-gguf-scheme", chosen); } catch (error) { /* remembered for this page only */ }
    apply();
  });
  apply();

  function valueOf(row, column) {
    var cell = row.cells[column];
    var figure = cell.getAttribute("data-v");
    return figure === null ? cell.textContent : Number(figure);
  }
  function compare(a, b) {
    var empty = (a === "" ? 1 : 0) - (b === "" ? 1 : 0);
    if (empty) { return empty; }
    if (typeof a === "number" && typeof b === "number") { return a - b; }
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }
  document.querySelectorAll("table.sort").forEach(function (table) {
    var body = table.tBodies[0];
    var heads = table.tHead.rows[0].cells;
    Array.prototype.forEach.call(heads, function (head, column) {
      var button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.textContent = "";
      head.appendChild(button);
      button.addEventListener("click", function () {
        var down = head.getAttribute("aria-sort") === "ascending";
        Array.prototype.forEach.call(heads, function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        Array.prototype.slice.call(body.rows)
          .map(function (row) { return { row: row, value: valueOf(row, column) }; })
          .sort(function (a, b) {
            var order = compare(a.value, b.value);
            return down && a.value !== "" && b.value !== "" ? -order : order;
          })
          .forEach(function (entry) { body.appendChild(entry.row); });
      });
    });
  });

  document.querySelectorAll("button.copy").forEach(function (button) {
    var source = button.parentNode.querySelector("pre");
    button.hidden = false;
    function tell(text) {
      button.textContent = text;
      setTimeout(function () { button.textContent = "Copy"; }, 1500);
    }
    function select() {
      var range = document.createRange();
      range.selectNodeContents(source);
      var selection = window.getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      tell(document.execCommand("copy") ? "Copied" : "Selected");
    }
    button.addEventListener("click", function () {
      if (navigator.clipboard && navigator.clipboard.writeText) {
        navigator.clipboard.writeText(source.textContent).then(function () { tell("Copied"); }, select);
      } else { select(); }
    });
  });

  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details.print").forEach(function (part) { part.open = true; });
  });
})();
"""
