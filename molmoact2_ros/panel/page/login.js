// Shows the token once; the answer is a cookie that lasts as long as the browser runs.
document.getElementById("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const said = document.getElementById("said");
  const token = document.getElementById("token").value.trim();
  try {
    const answer = await fetch("login", { headers: { Authorization: `Bearer ${token}` } });
    if (answer.ok) location.reload();
    else said.textContent = (await answer.text()).trim();
  } catch {
    said.textContent = "the panel does not answer";
  }
});
