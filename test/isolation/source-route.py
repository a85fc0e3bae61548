"""Sends a datagram that names the way it wants to go: by one host to another (loose source route, RFC 791).

usage: source-route.py BY TO PORT
"""
import socket
import sys

by, to, port = sys.argv[1:]
LOOSE = 131
option = bytes([LOOSE, 7, 4]) + socket.inet_aton(to) + b"\0"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    out.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, option)
    out.sendto(b"x", (by, int(port)))
