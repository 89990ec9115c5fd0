#!/usr/bin/env python3
"""A client that counts: new TLS connections at a steady rate, and some that are held.

    client.py ADDRESS:PORT SECONDS [RATE [HELD [TIMEOUT]]]

Ends after SECONDS, or at once when its standard input or the file STOP beside it says so, and prints one JSON object:
how many requests there were, how many failed and why, how many were slow, and what became of the held connections.
"""
import collections
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time

SLOW_SECONDS = 0.5
REQUEST = b"GET /readyz HTTP/1.1\r\nHost: kubernetes\r\n"


def context():
    """TLS that asks for no name: what is counted is the way there."""
    made = ssl.create_default_context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


class Counts:
    """What happened."""

    def __init__(self):
        self.lock = threading.Lock()
        self.requests = self.failed = self.slow = self.resets = self.held_requests = 0
        self.worst = self.held_worst = 0.0
        self.last_failure = None
        self.reasons = collections.Counter()

    def told(self, took, error):
        """A new connection."""
        with self.lock:
            self.requests += 1
            self.worst = max(self.worst, took)
            self.slow += took > SLOW_SECONDS
            if error is not None:
                self.failed += 1
                self.reasons[error] += 1
                self.last_failure = time.time()

    def held(self, took, error):
        """A request on a held connection."""
        with self.lock:
            self.held_requests += 1
            self.held_worst = max(self.held_worst, took)
            if error is not None:
                self.resets += 1
                self.reasons["held: " + error] += 1

    def result(self):
        """All of it."""
        with self.lock:
            return {
                "requests": self.requests, "failed": self.failed, "slow": self.slow,
                "worst_ms": round(self.worst * 1000), "held_requests": self.held_requests, "resets": self.resets,
                "held_worst_ms": round(self.held_worst * 1000), "reasons": dict(self.reasons),
            }


def answered(link, closes):
    """Sends a request and reads its answer."""
    link.sendall(REQUEST + (b"Connection: close\r\n\r\n" if closes else b"\r\n"))
    head = b""
    while b"\r\n\r\n" not in head:
        more = link.recv(4096)
        if not more:
            raise ConnectionError("closed early")
        head += more
    if not head.startswith(b"HTTP/1."):
        raise ConnectionError("no HTTP")


def connect(address, tls, timeout):
    """A TLS connection."""
    return tls.wrap_socket(socket.create_connection(address, timeout=timeout))


def name_of(error):
    """An error in a word or two."""
    return type(error).__name__ + (f" {error}" if str(error) else "")


def once(address, tls, timeout, counts):
    """One new connection with a request."""
    began = time.monotonic()
    error = None
    try:
        with connect(address, tls, timeout) as link:
            answered(link, True)
    except OSError as failure:
        error = name_of(failure)
    counts.told(time.monotonic() - began, error)


def hold(address, tls, timeout, counts, over):
    """A connection that is held, with a request five times a second, and made anew when it is lost."""
    link = None
    while not over.is_set():
        began = time.monotonic()
        try:
            if link is None:
                link = connect(address, tls, timeout)
            answered(link, False)
            counts.held(time.monotonic() - began, None)
        except OSError as failure:
            counts.held(time.monotonic() - began, name_of(failure))
            link = None
        over.wait(0.2)


def main():
    """Runs until the time is over."""
    place, seconds = sys.argv[1], float(sys.argv[2])
    rate, held, timeout = (float(a) if a else d for a, d in zip(sys.argv[3:6] + [""] * 3, (20, 4, 10)))
    host, port = place.rsplit(":", 1)
    address = (host.strip("[]"), int(port))
    tls, counts, over = context(), Counts(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    stop = os.environ.get("CLIENT_STOP")
    end = time.monotonic() + seconds
    threads = [
        threading.Thread(target=hold, args=(address, tls, timeout, counts, over)) for _ in range(int(held))
    ]
    for thread in threads:
        thread.start()
    due = time.monotonic()
    while not over.is_set() and time.monotonic() < end:
        thread = threading.Thread(target=once, args=(address, tls, timeout, counts))
        thread.start()
        threads = [one for one in threads if one.is_alive()] + [thread]
        due += 1 / rate
        over.wait(max(0.0, due - time.monotonic()))
        if stop and os.path.exists(stop):
            over.set()
    over.set()
    for thread in threads:
        thread.join()
    print(json.dumps(counts.result()))


if __name__ == "__main__":
    main()
