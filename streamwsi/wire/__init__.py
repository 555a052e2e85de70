"""The wire: messages as typed bytes, sockets, keys. The only place that imports zmq."""
