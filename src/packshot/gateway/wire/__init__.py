"""Sockets: the pool of upstream connections, the server's protocol, the framing of events."""
