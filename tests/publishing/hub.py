"""A stand-in of the Hugging Face Hub in memory: enough of its HTTP for a push and a pull."""

import base64
import hashlib
import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "a" * 40


class StandInHub:
    """``repositories`` maps ``models/ada/tiny`` or ``spaces/ada/chat`` to its files: path -> content."""

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.blobs: dict[str, bytes] = {}
        self.created: list[dict] = []
        self.tokens: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                content = b""
                while size := int(self.rfile.readline(), 16):
                    content += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return content

            def answer(self, status, value=b"", **headers):
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name.replace("_", "-"), text)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def do_POST(self):
                hub.tokens.add(self.headers.get("Authorization", ""))
                hub.post(self, unquote(self.path.split("?")[0]), self.body())

            def do_PUT(self):
                content = self.body()
                hub.blobs[hashlib.sha256(content).hexdigest()] = content
                self.answer(200)

            def do_GET(self):
                hub.get(self, unquote(self.path.split("?")[0]))

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def files_of(self, path) -> dict[str, bytes]:
        """The repository that a path of either form names: ``/api/spaces/ada/chat/…`` or ``/ada/tiny/…``."""
        parts = path.removeprefix("/api").strip("/").split("/")
        kind = parts.pop(0) if parts[0] in ("models", "spaces") else "models"
        return self.repositories["/".join([kind, parts[0], parts[1].removesuffix(".git")])]

    def post(self, handler, path, body):
        if path == "/api/repos/create":
            wanted = json.loads(body)
            self.created.append(wanted)
            name = (
                f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            )
            prefix = "spaces/" if wanted.get("type") == "space" else ""
            handler.answer(200, {"url": f"{self.url}/{prefix}{name}", "name": name})
        elif path == "/api/validate-yaml":
            handler.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": self.mode(file["path"]),
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            handler.answer(200, {"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.url}/upload", "header": {}}}}
                for item in json.loads(body)["objects"]
            ]
            handler.answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            for line in body.splitlines():
                self.apply(self.files_of(path), json.loads(line))
            repository = path.removeprefix("/api/").removeprefix("models/").split("/commit/")[0]
            url = f"{self.url}/{repository}/commit/{COMMIT}"
            handler.answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url})
        else:
            handler.answer(404, {"error": f"no {path}"})

    @staticmethod
    def mode(path):
        return "lfs" if path.endswith(".safetensors") else "regular"

    def apply(self, files, operation):
        value = operation["value"]
        if operation["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif operation["key"] == "lfsFile":
            files[value["path"]] = self.blobs[value["oid"]]

    def get(self, handler, path):
        if "/resolve/" in path:
            files, name = self.files_of(path), path.split("/resolve/", 1)[1].split("/", 1)[1]
            if name in files:
                etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
                size = str(len(files[name]))
                handler.answer(200, files[name], ETag=etag, X_Repo_Commit=COMMIT, X_Linked_Size=size)
            else:
                missing = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": COMMIT}
                handler.answer(404, {"error": "Entry not found"}, **missing)
        elif "/tree/" in path:
            files = self.files_of(path)
            handler.answer(
                200, [{"type": "file", "path": name, "size": len(c), "oid": "0"} for name, c in files.items()]
            )
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.files_of(path)]
            handler.answer(200, {"id": "ada/tiny", "sha": COMMIT, "siblings": siblings, "private": False})
        else:
            handler.answer(404, {"error": f"no {path}"})
