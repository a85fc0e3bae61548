"""Writes down every packet of an interface, both ways: wiretap.py INTERFACE FILE. Says `ready` when it listens."""
import socket
import sys

tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
tap.bind((sys.argv[1], 0))
tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
with open(sys.argv[2], "wb", buffering=0) as file:
    print("ready", flush=True)
    while True:
        file.write(tap.recv(65535))
