// Renders the formulas of a page by KaTeX, which is loaded only where a page has formulas.
const assets = new URL("./", document.currentScript.src);

document.addEventListener("DOMContentLoaded", () => {
  const formulas = document.querySelectorAll(".arithmatex");
  if (formulas.length === 0) {
    return;
  }
  const styles = document.createElement("link");
  styles.rel = "stylesheet";
  styles.href = new URL("katex/katex.min.css", assets);
  const katex = document.createElement("script");
  katex.src = new URL("katex/katex.min.js", assets);
  katex.onload = () => formulas.forEach(render);
  document.head.append(styles, katex);
});

// The text of a formula is \(...\) within a line and \[...\] in a paragraph of its own.
function render(formula) {
  const text = formula.textContent.trim();
  const options = { displayMode: text.startsWith("\\["), fleqn: true, throwOnError: false };
  window.katex.render(text.slice(2, -2), formula, options);
}
