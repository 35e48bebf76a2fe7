"""Serve a page and a JSON endpoint that search an index by a photo, or by words.

metric-learning serve --index=photos.index --port=8000

The model is the one that the index was built with. Other machines are let in with --host=0.0.0.0
and --token=TEXT only.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence

from metric_learning.common.cli import refuse_torchrun, user_errors
from metric_learning.common.flags import Flag, boolean, natural, parse_flags, path, positive
from metric_learning.common.log import log, show
from metric_learning.common.optional import import_optional
from metric_learning.engine.options.tables import MACHINE_FLAGS, SEARCH_FLAGS

SHORTEST_TOKEN = 16  # characters
LARGEST_PORT = 2**16 - 1
CONNECTIONS = 256  # at once; further ones are answered by status 503
LARGEST_HEAD = 2**14  # bytes of a request's head
DECODE_SECONDS = 10  # that the decoding of an upload may take
FLAGS = (
    Flag("index", path, None, "search index that infer.py built"),
    Flag("pretrained_model", path, None, "its weights, where they have moved since"),
    Flag("host", str, "127.0.0.1", "address to listen at; others than loopback take --token"),
    Flag("port", natural, 8000, "port to listen at; 0: any that is free, which is printed"),
    Flag("token", str, None, "what others have to show; auto: a random one, which is printed"),
    Flag("max_upload", positive, 20, "largest upload, in MB (a million bytes)"),
    *(flag for flag in SEARCH_FLAGS if flag.name in ("unknown_threshold", "on_changed_data")),
    Flag("file_names", boolean, False, "show the names of files, without their folders"),
    *(flag for flag in MACHINE_FLAGS if flag.name in ("use_gpu", "device")),
    Flag("max_pixels", positive, 64, "most pixels of an upload, in millions"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until the process is interrupted."""
    with user_errors():
        flags = parse_flags(__doc__, FLAGS, argv, prog="metric-learning serve")
        refuse_torchrun()
        if flags.index is None:
            raise ValueError("expected --index=FILE, a search index that infer.py built")
        for package in ("uvicorn", "fastapi"):
            import_optional(package, "a search page", "fastapi uvicorn")
        token = settle_token(flags.token, flags.host)
        door = listen(flags.host, flags.port)  # before the model, which takes seconds

        # torch and all else, only now
        from metric_learning.engine.embed.embedder import Embedder
        from metric_learning.engine.options.evaluation import settle_queries
        from metric_learning.engine.search.search import check_index
        from metric_learning.engine.serve.app import Limits, build_app
        from metric_learning.engine.serve.decoder import Decoders, start_early
        from metric_learning.engine.serve.searcher import Searcher

        machine = {name: getattr(flags, name) for name in ("use_gpu", "device", "max_pixels")}
        search_index, work = settle_queries(
            flags.index, flags.pretrained_model, num_workers=0, batch_size=1, **machine
        )
        start_early()
        embedder = Embedder.of(work)
        changed = flags.on_changed_data
        for note in check_index(flags.index, search_index, embedder, on_changed_data=changed):
            log(note)
        asked = flags.unknown_threshold
        searcher = Searcher(flags.index, search_index, embedder, asked, flags.file_names)
        at_once = min(4, os.cpu_count() or 1)
        decoders = Decoders(at_once, embedder.preprocessing.decoding, DECODE_SECONDS)
        limits = Limits(flags.max_upload * 10**6, at_once)

        log(f"{len(search_index)} images of {flags.index}, {embedder.source}")
        show(f"open {address_of(door, token)} (Ctrl-C ends)")
        try:
            serve(build_app(searcher, decoders, limits, token), door)
        finally:
            decoders.close()
            log("the search page has ended")


def settle_token(token: str | None, host: str) -> str | None:
    """Return what others have to show, drawn for `auto`; ValueError where it is too little."""
    from metric_learning.engine.serve.guard import is_loopback

    if token == "auto":
        return secrets.token_urlsafe(SHORTEST_TOKEN)
    if token is None and not is_loopback(host):
        raise ValueError(
            f"--host={host} lets other machines in: give --token=TEXT, which they have to show, "
            "or --token=auto"
        )
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or " " in token):
        raise ValueError(f"expected a --token of {SHORTEST_TOKEN} or more letters, or auto")
    return token


def listen(host: str, port: int) -> socket.socket:
    """Take a port; ValueError where it cannot be had."""
    if port > LARGEST_PORT:  # which the system would take for another one
        raise ValueError(f"expected a --port of 0 to {LARGEST_PORT}, found {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        door = socket.socket(found[0], socket.SOCK_STREAM)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(found[4])
        door.listen(CONNECTIONS)
    except OSError as error:
        raise ValueError(
            f"cannot listen at --host={host} --port={port}: {error.strerror}; give another --port"
        ) from error
    return door


def address_of(door: socket.socket, token: str | None) -> str:
    """Return the address of the page, for people."""
    host, port = door.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def serve(app: object, door: socket.socket) -> None:
    """Answer requests until the process is interrupted."""
    import uvicorn

    from metric_learning.engine.serve.connection import BriefConnection

    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=BriefConnection,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,  # the token may stand in an address
        server_header=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=LARGEST_HEAD,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[door])


if __name__ == "__main__":
    main()
