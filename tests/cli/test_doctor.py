import base64
import contextlib
import io
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image, PngImagePlugin

from lib_dino.cli import doctor, doctor_webui
from lib_dino.cli import parser as cli
from lib_dino.cli import webui_client as webapi
from lib_dino.errors import SettingsError
from lib_dino.pictures.infotext import infotext
from lib_dino.webui.model import model_files
from lib_dino.webui.panel.arguments import Request, parse
from lib_dino.webui_settings import TITLE, all_knobs

CHECKS = [check.name for check in doctor_webui.CHECKS]
PASSWORD = "me:secret"


class FakeWebUI:
    """A WebUI as the doctor sees it; `faults` are what is wrong with it."""

    def __init__(self, *faults, settings=None):
        self.faults, self.asked = set(faults), []
        self.options = {"samples_save": True, "sd_model_checkpoint": "tiny", **(settings or {})}
        self.sysinfo = {"Version": "v1.9.4", "Python": "3.10.6", "Packages": ["gradio==3.41.2"], "Exceptions": []}

    def get(self, path):
        if path == "/":
            return ("html", 502 if "gateway" in self.faults else 200)
        if path == "/internal/sysinfo" and "nowebui" not in self.faults:
            return self.sysinfo
        if not path.startswith("/sdapi") or "no api" in self.faults:
            return ({"detail": "Not Found"}, 404)
        if "login page" in self.faults:
            return ("html", 200)
        if "hangs" in self.faults:
            time.sleep(0.4)
        if path.endswith("schedulers"):
            return [{"label": "Automatic"}, {"label": "Simple"}]
        if path.endswith("sd-models"):
            return [] if "no checkpoint" in self.faults else [{"title": "tiny"}]
        return self.scripts() if path.endswith("script-info") else dict(self.options)

    def scripts(self):
        if "no extension" in self.faults:
            return [{"name": "loopback", "is_img2img": True, "is_alwayson": False, "args": []}]
        labels = [knob.label for knob in all_knobs().values()]
        if "older" in self.faults:
            labels = labels[:-1]
        args = [{"label": label, "choices": ["Default", "Built-in", "mine"]} for label in labels]
        places = [(True, False), (True, True), (False, True)][: 1 if "half there" in self.faults else 3]
        return [{"name": TITLE.lower(), "is_img2img": i, "is_alwayson": a, "args": args} for i, a in places]

    def post(self, body):
        self.asked.append(body)
        source = Image.open(io.BytesIO(base64.b64decode(body["init_images"][0])))
        args = body.get("script_args") or body.get("alwayson_scripts", {}).get(TITLE, {}).get("args")
        if args is None:
            if "broken" in self.faults:
                return ({"error": "RuntimeError", "detail": "", "errors": "out of memory"}, 500)
            black = "black" in self.faults or ("flow" in self.faults and body.get("scheduler") != "Simple")
            return self.answer(source.point(lambda value: 0) if black else self.shaken(source), "")
        if "swallows" in self.faults and "dino_strength" in args[0]:
            args[0]["dino_strength"] = min(args[0]["dino_strength"], 1.0)
        try:
            job = parse(args, request=Request(), choices={}, enabled=True)
        except SettingsError as error:
            return ({"detail": f"{error.field}: {error}"}, 422)
        if "extension fails" in self.faults:
            return ({"error": "KeyError", "detail": "", "errors": "boom"}, 500)
        return self.answer(self.upscaled(source, job.settings, "alwayson_scripts" in body), self.text(job))

    def upscaled(self, source, settings, always_on):
        if "other size" in self.faults:
            return source
        if "no picture" in self.faults:
            return None
        image = source.resize((80, 64), Image.Resampling.NEAREST)
        held = settings.consistency and "loose" not in self.faults
        lift = (0 if held else 9) + (20 if settings.guides and "inert" not in self.faults else 0)
        lift += "leaky" in self.faults and settings.dino_enabled and settings.dino_strength == 0
        lift += "two ways" in self.faults and always_on
        if "meddles" in self.faults:
            self.options["samples_save"] = False
        return self.shaken(image.point(lambda value: min(255, int(value + lift))))

    def shaken(self, image):
        return image.point(lambda v: (v + len(self.asked)) % 256) if "shaky" in self.faults else image

    def text(self, job):
        text = "" if "no text" in self.faults else "red\nSteps: 5, " + infotext(job.settings, (64, 80))
        return text.replace("version: ", "version: 9.") if "older" in self.faults else text

    @staticmethod
    def answer(image, text):
        if image is None:
            return {"images": []}
        info, stream = PngImagePlugin.PngInfo(), io.BytesIO()
        info.add_text("parameters", text)
        image.save(stream, "PNG", pnginfo=info)
        return {"images": [base64.b64encode(stream.getvalue()).decode()]}


@contextlib.contextmanager
def served(webui, password=None):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(webui.get(self.path))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(webui.post(body))

        def reply(self, content):
            content, status = content if isinstance(content, tuple) else (content, 200)
            wanted = password and "Basic " + base64.b64encode(password.encode()).decode()
            if wanted and self.path.startswith("/sdapi") and self.headers.get("Authorization") != wanted:
                content, status = {"detail": "Incorrect username or password"}, 401
            data = b"<!doctype html><p>Log in" if content == "html" else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # who waited has gone
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.005,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def findings(webui, **kwargs):
    with served(webui) as url:
        visit = doctor_webui.Visit(webapi.WebUI(url, timeout=kwargs.pop("timeout", 10.0)), **kwargs)
        return {finding.check: finding for finding in doctor.examine(doctor_webui.CHECKS, visit)}


def test_a_webui_in_order_passes_every_check():
    found = findings(FakeWebUI())
    assert list(found) == CHECKS
    assert {f.status for f in found.values()} == {doctor.OK}
    assert "AUTOMATIC1111 v1.9.4" in found["host"].detail and "gradio 3.41.2" in found["host"].detail


def test_nothing_is_saved_downloaded_or_set():
    webui = FakeWebUI()
    findings(webui)
    assert webui.asked and not any(body["save_images"] for body in webui.asked)
    args = [body["script_args"][0] for body in webui.asked if "script_args" in body]
    assert {a["dino_model"] for a in args} == {"Built-in"}
    assert not any("override_settings" in body for body in webui.asked)


@pytest.mark.parametrize(
    ("fault", "check", "word"),
    [
        ("gateway", "WebUI answers", "wait and try again"),
        ("no api", "API", "--api"),
        ("login page", "API", "logging in"),
        ("no checkpoint", "checkpoint", "models/Stable-diffusion"),
        ("no extension", "extension", "extensions folder"),
        ("half there", "extension", "restart"),
        ("older", "arguments", "same version"),
        ("broken", "normal generation", "console"),
        ("black", "normal generation", "--no-half-vae"),
        ("extension fails", "small upscale", "console"),
        ("other size", "small upscale", "console"),
        ("no picture", "small upscale", "console"),
        ("two ways", "both ways", "report"),
        ("leaky", "guidance off", "report"),
        ("inert", "guidance acts", "does not reach"),
        ("loose", "consistency acts", "not being held"),
        ("no text", "saved text", "infotext"),
        ("older", "saved text", "same version"),
        ("swallows", "wrong values", "refused"),
        ("meddles", "left as it was", "settings"),
    ],
)
def test_each_fault_is_found_by_its_check_with_what_to_do(fault, check, word):
    found = findings(FakeWebUI(fault))
    assert found[check].status == doctor.FAILED
    assert word in found[check].advice
    assert list(found) == CHECKS  # whatever fails, each check is accounted for


def test_what_needs_a_failed_check_is_skipped_saying_so():
    found = findings(FakeWebUI("no extension"))
    assert found["small upscale"].status == doctor.SKIPPED
    assert "extension" in found["small upscale"].detail
    assert found["normal generation"].status == found["left as it was"].status == doctor.OK


def test_a_flow_model_that_is_black_without_a_schedule_gets_one_and_is_in_order():
    webui = FakeWebUI("flow")
    found = findings(webui)
    assert {finding.status for finding in found.values()} == {doctor.OK}
    assert "schedule type Simple" in found["normal generation"].detail
    assert all(body["scheduler"] == "Simple" for body in webui.asked[1:])
    sound = FakeWebUI()
    findings(sound)
    assert not any("scheduler" in body for body in sound.asked)


def test_a_webui_that_never_repeats_itself_is_no_failure_of_ours():
    found = findings(FakeWebUI("shaky"))
    assert {found[c].status for c in ("both ways", "guidance off", "left as it was")} == {doctor.SKIPPED}
    assert "--xformers" in found["both ways"].detail


def test_the_hosts_own_words_are_passed_on():
    found = findings(FakeWebUI("broken"))
    assert "out of memory" in found["normal generation"].detail


def test_another_extensions_error_is_put_to_its_account():
    webui = FakeWebUI("extension fails")
    ours, other = "/x/lib_dino/host/takeover.py, line 1, run", "/x/extensions/other-one/scripts/a.py, line 3, f"
    frames = [[ours, ""], [other, ""]]
    webui.sysinfo["Exceptions"] = [{"exception": "boom", "traceback": frames}]
    assert "'other-one'" in findings(webui)["small upscale"].advice
    webui.sysinfo["Exceptions"][0]["traceback"] = frames[::-1]
    assert "other-one" not in findings(webui)["small upscale"].advice


@pytest.mark.parametrize(
    ("key", "entry", "word"),
    [
        ("Inactive extensions", {"name": "dino-upscale"}, "tick 'dino-upscale'"),
        ("Exceptions", {"exception": "no module", "traceback": [["scripts/dino_upscale.py, line 9", ""]]}, "no module"),
    ],
)
def test_it_says_why_the_extension_is_missing_where_the_host_knows(key, entry, word):
    webui = FakeWebUI("no extension")
    webui.sysinfo[key] = [entry]
    assert word in findings(webui)["extension"].advice


def test_a_feature_model_that_would_be_downloaded_is_tried_on_demand_alone():
    webui = FakeWebUI(settings={"dino_upscale_model": "dinov2-base"})
    found = findings(webui)["feature model"]
    assert found.status == doctor.SKIPPED and "--fetch" in found.detail
    assert findings(webui, fetch=True)["feature model"].status == doctor.OK
    assert webui.asked[-2]["script_args"][0]["dino_model"] == "Default"
    own = FakeWebUI(settings={"dino_upscale_model": "mine"})
    assert findings(own)["feature model"].status == doctor.OK


def test_without_system_info_the_host_is_unknown_and_the_rest_goes_on():
    found = findings(FakeWebUI("nowebui"))
    assert found["host"].status == doctor.SKIPPED
    assert found["left as it was"].status == doctor.OK


def test_a_webui_that_is_too_slow_is_told_from_one_that_is_not_there():
    found = findings(FakeWebUI("hangs"), timeout=0.1)
    assert found["API"].status == doctor.FAILED and "--timeout" in found["API"].advice


def run(*args, capsys):
    code = cli.main(["doctor", *args])
    return code, capsys.readouterr()


def test_nobody_listening_is_said_in_a_users_words(capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        code, said = run("--url", url, capsys=capsys)
    assert code == 1
    assert "nothing listens" in said.out and "Start the WebUI" in said.out
    assert len(said.out.splitlines()) == len(CHECKS) + 2  # one advice, one sum


def test_a_password_is_asked_for_and_used(capsys):
    with served(FakeWebUI(), PASSWORD) as url:
        code, said = run("--url", url, capsys=capsys)
        assert code == 1 and "--auth USER:PASSWORD" in said.out
        assert run("--url", url, "--auth", "me:wrong", capsys=capsys)[0] == 1
        code, said = run("--url", url, "--auth", PASSWORD, capsys=capsys)
    assert code == 0 and PASSWORD not in said.out


def test_json_holds_every_finding(capsys):
    with served(FakeWebUI("inert")) as url:
        code, said = run("--url", url, "--json", capsys=capsys)
    told = json.loads(said.out)
    assert code == 1 and told["ok"] is False and told["url"] == url
    assert [c["check"] for c in told["checks"]] == CHECKS
    [failed] = [c for c in told["checks"] if c["status"] == "failed"]
    assert failed["check"] == "guidance acts" and failed["advice"]


@pytest.mark.parametrize(
    "args", [["--url", "127.0.0.1:7860"], ["--url", "http://"], ["--url", "http://a:port"], ["--timeout", "0"],
             ["--timeout", "soon"], ["--url", "http://a", "--auth", "nobody"], ["--nonsense"]]
)  # fmt: skip
def test_a_wrong_command_line_is_a_matter_of_its_own(args, capsys):
    assert run(*args, capsys=capsys)[0] == 2


def test_something_that_is_no_web_server_is_told_apart(capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        def greet():
            connection = server.accept()[0]
            connection.recv(1000)
            connection.sendall(b"220 mail.example ESMTP\r\n")
            connection.close()

        thread = threading.Thread(target=greet)
        thread.start()
        code, said = run("--url", f"http://127.0.0.1:{server.getsockname()[1]}", capsys=capsys)
        thread.join()
    assert code == 1 and "not as a web server" in said.out


def test_this_environment_passes_its_own_checks(capsys):
    code, said = run(capsys=capsys)
    assert code == 0, said.out
    assert said.out.count("\n") == len(doctor.CHECKS) + 1


def test_a_missing_package_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "no-such-package"))
    found = {f.check: f for f in doctor.examine(doctor.CHECKS, doctor.Here())}
    assert found["packages"].status == doctor.FAILED and "no-such-package" in found["packages"].detail
    assert "requirements-standalone.txt" in found["packages"].advice
    assert found["small upscale"].status == doctor.SKIPPED


def test_the_doctors_names_are_those_of_the_webui_side():
    names = (doctor_webui.DEFAULT_MODEL, doctor_webui.BUILT_IN_MODEL, doctor_webui.OPTION_MODEL)
    assert names == (model_files.DEFAULT_MODEL, model_files.BUILT_IN_MODEL, model_files.OPTION_MODEL)
