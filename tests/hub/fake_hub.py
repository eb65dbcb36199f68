"""The hub's protocol on loopback, as far as `huggingface_hub` speaks it: repositories in memory, and what was asked."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """commits: files by name, by commit. refs: commits by branch and tag. refusal: status and X-Error-Code, or None."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    refusal: tuple[int, str] | None = None


class FakeHub:
    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.asked: list[str] = []  # 'GET /path' of every request
        self.large: dict[str, bytes] = {}  # uploaded by git-lfs, by SHA-256
        self.writable = True
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, repo: str, files: Path | dict[str, bytes], branch: str = "main") -> str:
        """A new commit of these files at the branch's tip; returns it."""
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        there = self.repos.setdefault(repo, Repo())
        commit = hashlib.sha1(f"{repo}{len(there.commits)}".encode()).hexdigest()
        there.commits[commit], there.refs[branch] = files, commit
        return commit

    def fetched(self) -> list[str]:
        """Names of the files whose bytes were fetched."""
        found = (re.fullmatch(r"GET /[^/]+/[^/]+/resolve/[^/]+/(.+)", line) for line in self.asked)
        return sorted(match[1] for match in found if match)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def say(self, value) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def at(self, name: str, revision: str) -> tuple[Repo, str] | None:
        """The repository and a commit of it; None once the refusal has been answered."""
        repo = self.hub.repos.get(name)
        status, code = (401, "RepoNotFound") if repo is None else repo.refusal or (0, "")
        commit = "" if repo is None else repo.refs.get(revision, revision)
        if not status and repo is not None and commit not in repo.commits:
            status, code = 404, "RevisionNotFound"
        if status or repo is None:
            self.answer(status, X_Error_Code=code)
            return None
        return repo, commit

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            if found := self.at(match[1], match[2] or "main"):
                repo, commit = found
                siblings = [{"rfilename": name} for name in repo.commits[commit]]
                self.say({"id": match[1], "sha": commit, "siblings": siblings, "private": repo.private})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            if found := self.at(match[1], match[2]):
                repo, commit = found
                oids = {name: hashlib.sha1(data).hexdigest() for name, data in repo.commits[commit].items()}
                self.say(
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": oids[name]}
                        for name, data in repo.commits[commit].items()
                    ]
                )
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if found := self.at(match[1], match[2]):
                repo, commit = found
                data = repo.commits[commit].get(match[3])
                if data is None:
                    return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=commit)
        else:
            self.answer(404)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self.hub.asked.append(f"PUT {self.path}")
        self.hub.large[self.path.rpartition("/")[2]] = self.body()
        self.answer(200)

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self.body()
        self.hub.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self.say({"errors": [], "warnings": []})
        if not self.hub.writable or not self.headers.get("Authorization"):
            return self.answer(403 if self.headers.get("Authorization") else 401)
        if path == "/api/repos/create":
            said = json.loads(body)
            name = f"{said['organization']}/{said['name']}"
            self.hub.add(name, {})
            self.hub.repos[name].private = said.get("visibility") == "private"
            self.say({"url": f"{self.hub.url}/{name}"})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            large = (".safetensors", ".bin")
            modes = {file["path"]: "lfs" if file["path"].endswith(large) else "regular" for file in files}
            self.say({"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            put = {item["oid"]: {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}} for item in objects}
            self.say({"transfer": "basic", "objects": [item | {"actions": put[item["oid"]]} for item in objects]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self.commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404)

    def commit(self, name: str, lines: list[dict]) -> None:
        repo = self.hub.repos[name]
        files = dict(repo.commits[repo.refs["main"]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        commit = self.hub.add(name, files)
        self.say({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})
