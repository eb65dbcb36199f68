"""`dipp-ray submit` against a dashboard in memory: logs, ends, retries, and every fault as one sentence."""

import zipfile
from pathlib import Path

import pytest
from fake_dashboard import FakeClient, Story
from ray._private.runtime_env.packaging import create_package
from ray.exceptions import AuthenticationError

from dipp_ray import cli
from dipp_ray.errors import JobFailed, UserError
from dipp_ray.submission import cluster, command, follow

RUN = ["python", "-c", "print('a b')"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for module, name in (
        (cluster, "RETRY_S"), (cluster, "LOST_S"), (follow, "LOOK_S"), (command, "PAUSE_S"), (command, "STOP_S")
    ):  # fmt: skip
        monkeypatch.setattr(module, name, 0.05)


def submitted(client, *arguments, **options):
    said = []
    jobs = cluster.Jobs("http://here", client)
    try:
        command.submit(lambda: jobs, RUN, *arguments, say=said.append, **options)
    finally:
        client.said = said
    return said


def test_the_log_is_shown_once_and_whole(capsys):
    client = FakeClient(Story(["one\n", "two\n", "three\n"]))
    said = submitted(client)
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
    assert said[-1].endswith("succeeded")
    assert client.asked[0]["entrypoint"] == """python -c 'print('"'"'a b'"'"')'"""


def test_a_log_whose_connection_breaks_goes_on_where_it_was(capsys):
    submitted(FakeClient(Story(["one\n", "two\n", "three\n"], breaks=[1, 0, 2])))
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_a_silent_connection_of_a_job_that_has_ended_is_left(capsys):
    submitted(FakeClient(Story(["one\n"], hangs=True)))
    assert capsys.readouterr().out == "one\n"


def test_what_the_connection_left_out_of_an_ended_jobs_log_is_read_at_the_end(capsys):
    client = FakeClient(Story(["one\n", "two\n"], status="FAILED", code=1))
    client.told = {"": 0}
    jobs = cluster.Jobs("http://here", client)
    client.jobs["early"] = client.stories.pop()
    client.told["early"] = 2  # ended before anybody looked
    with pytest.raises(JobFailed, match="exit status 1"):
        command.follow_command(jobs, "early")
    assert capsys.readouterr().out == "one\ntwo\n"


def test_a_job_that_waits_is_waited_for(capsys):
    submitted(FakeClient(Story(["one\n"], pending=3)))
    assert "one\n" in capsys.readouterr().out


def test_a_failed_job_is_submitted_again():
    client = FakeClient(Story(["a"], "FAILED", -9), Story(["b"], "FAILED", None, "the node died.\nmore"), Story(["c"]))
    said = submitted(client, retries=2)
    names = [asked["submission_id"] for asked in client.asked]
    assert names == [names[0], f"{names[0]}-2", f"{names[0]}-3"]
    assert f"job {names[0]} failed (exit status -9); submitted again, 2 of 2 retries left" in said
    assert f"job {names[1]} failed (the node died); submitted again, 1 of 2 retries left" in said
    assert said[-1] == f"job {names[2]} succeeded"


def test_retries_are_counted():
    client = FakeClient(*[Story(["a"], "FAILED", 1) for _ in range(3)])
    with pytest.raises(JobFailed, match=r"exit status 1.*like the 1 before it.*goes on from the last checkpoint"):
        submitted(client, retries=1)
    assert len(client.asked) == 2


def test_a_job_that_its_cluster_forgot_was_lost_and_is_submitted_again():
    client = FakeClient(Story(["a", "b"], breaks=[1, 1], vanishes=True), Story(["c"]))
    said = submitted(client, retries=1)
    assert len(client.asked) == 2
    assert any("lost with its cluster's head" in line for line in said)


@pytest.mark.parametrize(
    ("story", "error", "words"),
    [
        (Story(["a"], "FAILED", 2), UserError, "exit status 2"),
        (Story(["a"], "STOPPED", None), JobFailed, "was stopped"),
    ],
)
def test_bad_input_and_a_stopped_job_are_not_submitted_again(story, error, words):
    client = FakeClient(story, Story(["b"]))
    with pytest.raises(error, match=words):
        submitted(client, retries=5)
    assert len(client.asked) == 1


def test_a_dashboard_that_is_away_for_a_while_costs_nothing(capsys, monkeypatch):
    monkeypatch.setattr(cluster, "LOST_S", 60.0)
    client = FakeClient(Story(["one\n"]))
    server = RuntimeError(
        "Request failed with status code 500: No available agent to submit job, please try again later."
    )
    client.faults = [ConnectionError("refused"), server]
    submitted(client)
    assert capsys.readouterr().out == "one\n" and len(client.asked) == 1


def test_a_submission_whose_answer_was_lost_is_not_made_twice(monkeypatch):
    monkeypatch.setattr(cluster, "LOST_S", 60.0)
    client = FakeClient(Story(["one\n"]))
    submit = client.submit_job

    def lossy(**given):
        monkeypatch.setattr(client, "submit_job", submit)
        submit(**given)
        raise ConnectionError("reset")

    monkeypatch.setattr(client, "submit_job", lossy)
    assert submitted(client)[-1].endswith("succeeded")
    assert len(client.asked) == 1


def test_a_dashboard_that_stays_away_is_given_up_with_the_jobs_name():
    client = FakeClient(Story(["a"]))
    jobs = cluster.Jobs("http://here", client)
    client.faults = [ConnectionError("refused")] * 1000
    with pytest.raises(JobFailed, match=r"no answer for 0 s .refused.: job mine may go on"):
        jobs.details("mine")


BAD_LABEL = """Request failed with status code 500: Traceback
RuntimeError: Request failed with status code 400: Traceback
ValueError: Invalid label `:`."""


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (AuthenticationError("Authentication required"), "wants the cluster's token: set RAY_AUTH_MODE=token"),
        (RuntimeError(BAD_LABEL), "http://here refuses: Invalid label `:`$"),
        (ValueError("Package size (600MiB) exceeds the maximum size of 500MiB."), "exceeds the maximum size"),
    ],
)
def test_what_the_dashboard_refuses_is_one_sentence(fault, words):
    client = FakeClient(Story(["a"]))
    client.faults = [fault]
    with pytest.raises(UserError, match=words):
        submitted(client)


@pytest.mark.parametrize(
    ("on", "options"),
    [
        (None, {}),
        ("head", {"entrypoint_resources": {"node:__internal_head__": 0.001}}),
        ("market=!spot", {"entrypoint_label_selector": {"market": "!spot"}}),
    ],
)
def test_where_the_driver_runs(on, options):
    client = FakeClient(Story(["a"]))
    submitted(client, on=on)
    given = client.asked[0]
    assert {key: value for key, value in given.items() if key.startswith("entrypoint_")} == options


def test_a_detached_job_is_left_alone(capsys):
    client = FakeClient(Story(["one\n"]))
    said = submitted(client, detach=True)
    assert capsys.readouterr().out == ""
    assert f"--stop {client.asked[0]['submission_id']} ends it" in said[-1]


def test_an_interrupted_look_leaves_the_job(monkeypatch):
    client = FakeClient(Story(["one\n"]))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "follow", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"job dipp-ray-\w+ goes on, and is not submitted again"):
        submitted(client, retries=3)
    assert len(client.asked) == 1 and not client.stopped


def test_jobs_are_listed_described_and_stopped():
    client = FakeClient(Story(["one\n"], "FAILED", 7))
    client.jobs["mine"] = client.stories.pop()
    jobs, said = cluster.Jobs("http://here", client), []
    command.list_command(jobs, said.append)
    assert len(said) == 1 and said[0].startswith("mine  RUNNING  20") and said[0].endswith("python work.py")
    client.told["mine"] = 1
    command.status_command(jobs, "mine", said.append)
    assert said[-1] == "mine  FAILED  exit status 7  python work.py"
    command.stop_command(jobs, "mine", said.append)
    assert said[-1] == "job mine had ended: FAILED"
    client.told["mine"], client.dying["mine"] = 0, 2
    command.stop_command(jobs, "mine", said.append)
    assert said[-1] == "job mine is stopped" and client.stopped == ["mine"]
    for verb in (command.status_command, command.stop_command, command.follow_command):
        with pytest.raises(UserError, match="Job yours does not exist at http://here: dipp-ray submit --list"):
            verb(jobs, "yours")


def test_what_a_job_gets_of_the_folder(tmp_path):
    kept = ["jobs/align.py", "mine.yaml", "package/code.py", "package/runs/code.py"]
    for name in (*kept, "runs/a/grid.png", ".git/HEAD", ".venv/bin/python", "package/__pycache__/a.pyc", ".cache/m"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    sent = command.runtime_env(tmp_path / "folder", {"A": "b"})
    assert sent["env_vars"] == {"A": "b"}
    create_package(sent["working_dir"], tmp_path / "sent.zip", include_gitignore=True, excludes=sent["excludes"])
    with zipfile.ZipFile(tmp_path / "sent.zip") as unpacked:
        assert sorted(name for name in unpacked.namelist() if not name.endswith("/")) == kept


@pytest.fixture
def bad(capsys, monkeypatch, tmp_path):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def refused(*arguments):
        assert cli.main(["submit", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("dipp-ray: ") and error.count("\n") == 1
        return error

    return refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say what the job runs"),
        (["python", "jobs/align.py", "--generator", "x"], "write -- before the command"),
        (["--", "python", "none.py"], "none.py is not in "),
        (["--", "python", "-m", "mine", "mine.yaml"], "mine.yaml is not in "),
        (["--on", "here", "--", "true"], "--on here: write head, or label=value"),
        (["--on", "zone=", "--", "true"], "--on zone=: write head"),
        (["--env", "NONE_SUCH", "--", "true"], "--env NONE_SUCH: there is no such variable"),
        (["--working-dir", "none", "--", "true"], "--working-dir none is no folder"),
        (["--detach", "--retries", "2", "--", "true"], "leave out --detach, or --retries"),
        (["--stop", "a", "--", "true"], "a command is submitted by itself"),
        (["--list", "--address", "ftp://here"], "'ftp://here' is no dashboard's address"),
        (["--list", "--address", "http://127.0.0.1:9"], "no dashboard at http://127.0.0.1:9 ("),
    ],
)
def test_bad_requests_are_one_sentence(bad, arguments, words):
    assert words in bad(*arguments)


def test_where_the_dashboard_is(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert cluster.address_of_jobs(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    with pytest.raises(UserError, match=r"give --address http://10\.0\.0\.5:8265"):
        cluster.address_of_jobs(None)
    monkeypatch.setenv("RAY_ADDRESS", "https://head/")
    assert cluster.address_of_jobs(None) == "https://head"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "head:8265")
    assert cluster.address_of_jobs(None) == "http://head:8265"
    assert cluster.address_of_jobs("other") == "http://other"


def test_a_web_server_that_is_no_dashboard_is_said(bad):
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert address in bad("--list", "--address", address)
    finally:
        server.shutdown()


def test_variables_are_taken_along():
    assert command.variables(["A=b=c", "B"], {"B": "x"}) == {"A": "b=c", "B": "x"}


def test_the_command_goes_on_after_its_own_dashes(monkeypatch):
    given = []
    monkeypatch.setattr(command, "submit", lambda *arguments: given.append(arguments))
    line = ["submit", "--retries", "3", "--on", "head", "--", "python", "-m", "x", "--generator", "RUN", "run.steps=2"]
    assert cli.main(line) == 0
    assert given[0][1:] == (line[6:], Path("."), {}, "head", 3, False)
