"""A Hugging Face hub on loopback for tests: what huggingface_hub asks of the file API, for repositories in memory."""

import hashlib
import json
import re
from dataclasses import dataclass, field

from tests.web import Page, Site

COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = re.compile(
    r"/api/(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^/]+)/?(?P<path>.*)"
)
RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Repository:
    """One repository; `token` opens a gated one."""

    files: dict[str, bytes] = field(default_factory=dict)
    token: str | None = None
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    faults: dict[str, tuple[Page, ...]] = field(default_factory=dict)  # path: what the first requests for it get


class HubSite(Site):
    """`repositories` by kind and name, such as datasets/owner/name."""

    def __init__(self, repositories):
        super().__init__()
        self.repositories = repositories

    def page(self, request):
        if found := API.fullmatch(request.path):
            name = f"{found['kind']}/{found['repo']}"
            return self._repository(name, found["revision"], lambda repo, commit: self._api(repo, commit, found, request))
        if found := RESOLVE.fullmatch(request.path):
            name = f"{(found['kind'] or 'models').strip('/')}/{found['repo']}"
            return self._repository(name, found["revision"], lambda repo, commit: self._file(repo, commit, found, request))
        return Page(status=404)

    def _repository(self, name, revision, answer):
        if name not in self.repositories:
            return refused(401, "RepoNotFound")
        repository = self.repositories[name]
        commits = repository.revisions | {commit: commit for commit in repository.revisions.values()}
        if revision not in commits:
            return refused(404, "RevisionNotFound")
        return answer(repository, commits[revision])

    def _api(self, repository, commit, found, request):
        if found["what"] == "revision":
            return as_json({"id": found["repo"], "sha": commit, "private": False, "tags": [], "siblings": []})
        entries = listed(repository.files, found["path"], "true" in request.query.get("recursive", "").lower())
        if not entries:
            return refused(404, "EntryNotFound")
        start = int(request.query.get("cursor", 0))
        more = self.url(f"{request.path}?recursive={request.query.get('recursive', '')}&cursor={start + 3}")
        return as_json(entries[start : start + 3], {"Link": f'<{more}>; rel="next"'} if start + 3 < len(entries) else {})

    def _file(self, repository, commit, found, request):
        if repository.token and request.headers.get("Authorization") != f"Bearer {repository.token}":
            return refused(401, "GatedRepo")
        if found["path"] not in repository.files:
            return refused(404, "EntryNotFound")
        faults = repository.faults.get(found["path"], ())
        asked = sum(path == request.path for path, _ in self.requests)
        if asked <= len(faults):
            return faults[asked - 1]
        body = repository.files[found["path"]]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
        return Page(body, headers=headers, ranges=True)


def listed(files, folder, recursive):
    """Entries of a folder as the hub lists them."""
    inside = {path: body for path, body in sorted(files.items()) if path.startswith(f"{folder}/" if folder else "")}
    depth = len(folder.split("/")) if folder else 0
    folders = {"/".join(path.split("/")[:end]) for path in inside for end in range(depth + 1, len(path.split("/")))}
    entries = [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)]
    entries += [{"type": "file", "path": path, "size": len(body), "oid": "1" * 40} for path, body in inside.items()]
    return [entry for entry in entries if recursive or len(entry["path"].split("/")) == depth + 1]


def as_json(value, headers=()):
    return Page(json.dumps(value).encode(), headers={"Content-Type": "application/json", **dict(headers)})


def refused(status, code):
    return Page(status=status, headers={"X-Error-Code": code, "X-Error-Message": f"{code} for a reason"})
