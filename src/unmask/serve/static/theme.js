// Before anything is drawn: light or dark, as chosen here last; otherwise as the system has it.
try {
  const chosen = localStorage.getItem("unmask.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // a browser that keeps nothing: the system's choice
}
