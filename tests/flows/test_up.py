"""What `egomill up` answers, and whom: its user. Not other pages of the user's browser, nor who does not know the secret."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from egomill.flows.up import TEMPLATE, free, guarded

SECRET = "egomill:a secret"


def asked(method: str = "GET", path: str = "/", auth: tuple[str, str] | None = ("egomill", "a secret"), **headers: str) -> int:
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})

    async def ask() -> int:
        transport = httpx.ASGITransport(app=guarded(app, SECRET))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:5000", auth=auth) as client:
            return (await client.request(method, path, headers=headers)).status_code

    return asyncio.run(ask())


def test_who_knows_the_secret_is_answered():
    assert asked() == asked("POST") == asked("POST", origin="http://127.0.0.1:5000") == 200
    assert asked(auth=None) == asked(auth=("egomill", "another")) == asked(auth=("", "")) == 401
    assert asked(path="/health", auth=None) == 200  # tells nothing


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS"])
def test_another_pages_requests_are_refused_though_the_browser_knows_the_secret(method):
    assert (
        asked(method, origin="http://evil.example") == asked(method, origin="null") == asked(method, origin="http://127.0.0.1:5001") == 403
    )
    assert asked(method, **{"sec-fetch-site": "cross-site"}) == asked(method, **{"sec-fetch-site": "same-site"}) == 403


def test_a_link_from_elsewhere_may_be_followed_but_nothing_be_sent_or_framed():
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert asked(**link) == 200
    assert asked("POST", **link) == asked(**{**link, "sec-fetch-dest": "iframe"}) == 403


def test_a_run_may_change_nothing_of_the_command():
    assert TEMPLATE["variables"] == {"type": "object", "properties": {}, "additionalProperties": False}
    assert "{{" not in str(TEMPLATE["job_configuration"])


def test_a_port_that_is_taken_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="name another with --prefect-port"):
        free("127.0.0.1", taken.getsockname()[1], "--prefect-port")


PAGE = """<body><script>
const said = [];
async function attempt(name, url, options) {
  try { const r = await fetch(url, {method: "POST", ...options}); said.push(name + " " + (r.type == "opaque" ? "sent" : r.status)); }
  catch (e) { said.push(name + " refused"); }
}
(async () => {
  const json = {"content-type": "application/json"}, text = {"content-type": "text/plain"};
  const places = {prefect: "http://127.0.0.1:%d/api/flows/", mlflow: "http://127.0.0.1:%d/api/2.0/mlflow/experiments/create"};
  for (const [server, url] of Object.entries(places)) {
    await attempt(server + " preflighted", url, {headers: json, body: '{"name": "evil"}'});
    await attempt(server + " simple", url, {headers: text, body: '{"name": "evil"}'});
    await attempt(server + " blind", url, {mode: "no-cors", headers: text, body: '{"name": "evil"}'});
    await attempt(server + " with credentials", url, {credentials: "include", headers: text, body: '{"name": "evil"}'});
    const form = document.createElement("form");
    form.method = "post"; form.enctype = "text/plain"; form.action = url; form.target = "frame";
    form.innerHTML = `<input name='{"name": "evil", "x": "' value='"}'>`;
    document.body.append(form); form.submit();
    await new Promise(r => setTimeout(r, 500));
  }
  document.body.insertAdjacentHTML("beforeend", "<pre>" + said.join("\\n") + "</pre>");
})();
</script><iframe name="frame"></iframe></body>"""


def test_a_page_in_a_browser_changes_nothing(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = one.getsockname()[1], two.getsockname()[1]

    class Evil(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write((PAGE % ports).encode())

        def log_message(self, *_):
            pass

    evil = ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    threading.Thread(target=evil.serve_forever, daemon=True).start()
    env = {**os.environ, "PREFECT_SERVER_API_AUTH_STRING": SECRET, "PREFECT_HOME": str(tmp_path / "prefect")}
    command = [str(Path(sys.executable).with_name("egomill")), "up", "--lake", str(tmp_path / "lake")]
    command += ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    up = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert up.stderr
    try:
        assert any("Ctrl-C ends both" in line for line in up.stderr)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
        flags += ["--disable-sync", "--disable-component-update", f"--user-data-dir={tmp_path / 'browser'}"]
        flags += ["--timeout=20000", "--virtual-time-budget=20000"]
        page = subprocess.run([chromium, *flags, "--dump-dom", f"http://127.0.0.1:{evil.server_port}/"], capture_output=True, text=True)
        told = page.stdout.rpartition("<pre>")[2].partition("</pre>")[0].splitlines()
        assert len(told) == 8, page.stdout
        assert [line for line in told if not line.endswith("refused")] == ["prefect blind sent", "mlflow blind sent"]  # and not done:
        auth = ("egomill", "a secret")
        token = httpx.get(f"http://127.0.0.1:{ports[0]}/api/csrf-token?client=test", auth=auth).json()["token"]
        headers = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "test"}
        flows = httpx.post(f"http://127.0.0.1:{ports[0]}/api/flows/filter", json={}, auth=auth, headers=headers)
        experiments = httpx.get(f"http://127.0.0.1:{ports[1]}/api/2.0/mlflow/experiments/search?max_results=10", auth=auth)
        assert flows.json() == []
        assert [experiment["name"] for experiment in experiments.json()["experiments"]] == ["Default"]
    finally:
        up.terminate()
        up.wait(60)
        up.stderr.close()
        evil.shutdown()
