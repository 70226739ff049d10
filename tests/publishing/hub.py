"""A stand-in of the Hugging Face Hub in memory: enough of its HTTP for one push and one pull."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "a" * 40


class StandInHub:
    """Holds one repository; ``files`` maps path to content."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
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

    def post(self, handler, path, body):
        if path == "/api/repos/create":
            handler.answer(200, {"url": f"{self.url}/ada/tiny", "name": "ada/tiny"})
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
                self.apply(json.loads(line))
            handler.answer(
                200,
                {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.url}/ada/tiny/commit/{COMMIT}"},
            )
        else:
            handler.answer(404, {"error": f"no {path}"})

    @staticmethod
    def mode(path):
        return "lfs" if path.endswith(".safetensors") else "regular"

    def apply(self, operation):
        value = operation["value"]
        if operation["key"] == "file":
            self.files[value["path"]] = base64.b64decode(value["content"])
        elif operation["key"] == "lfsFile":
            self.files[value["path"]] = self.blobs[value["oid"]]

    def get(self, handler, path):
        name = path.split("/resolve/", 1)[-1].split("/", 1)[-1] if "/resolve/" in path else None
        if name in self.files:
            content = self.files[name]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            handler.answer(200, content, ETag=etag, X_Repo_Commit=COMMIT, X_Linked_Size=str(len(content)))
        elif name is not None:
            handler.answer(
                404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT
            )
        elif "/tree/" in path:
            tree = [
                {"type": "file", "path": name, "size": len(c), "oid": "0"} for name, c in self.files.items()
            ]
            handler.answer(200, tree)
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.files]
            handler.answer(200, {"id": "ada/tiny", "sha": COMMIT, "siblings": siblings, "private": False})
        else:
            handler.answer(404, {"error": f"no {path}"})
