// Before anything is drawn, or a dark page would flash light.
try {
  const theme = JSON.parse(localStorage.getItem("qtransformers.theme"));
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // storage is forbidden: as the system has it
}
