"""Sends packets that no socket of the system would send. Takes a JSON list of them as its argument:

kind                  "tcp", "udp", or "redirect": an ICMP redirect (RFC 792) that claims `gateway` for `target`
source, destination   addresses of one family
sourcePort, port      of TCP and UDP
flags, sequence       of TCP: flags out of "FSRA"
payload               text
interface             hand the packet to this interface, whatever the routes say
"""
import json
import socket
import struct
import sys


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packed(address):
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def pseudo(spec, protocol, size):
    addresses = packed(spec["source"]) + packed(spec["destination"])
    layout = "!BBH" if len(addresses) == 8 else "!II"
    return addresses + struct.pack(layout, *((0, protocol, size) if layout == "!BBH" else (size, protocol)))


def sealed(segment, at, before):
    """Puts the checksum over `before` and the segment into the segment."""
    return segment[:at] + struct.pack("!H", checksum(before + segment)) + segment[at + 2 :]


def tcp(spec):
    bits = sum({"F": 1, "S": 2, "R": 4, "A": 16}[flag] for flag in spec["flags"])
    fields = [spec["sourcePort"], spec["port"], spec.get("sequence", 1), 1, 5 << 4, bits, 1024]
    segment = struct.pack("!HHIIBBHHH", *fields, 0, 0) + spec.get("payload", "").encode()
    return socket.IPPROTO_TCP, sealed(segment, 16, pseudo(spec, socket.IPPROTO_TCP, len(segment)))


def udp(spec):
    payload = spec.get("payload", "x").encode()
    segment = struct.pack("!HHHH", spec["sourcePort"], spec["port"], 8 + len(payload), 0) + payload
    return socket.IPPROTO_UDP, sealed(segment, 6, pseudo(spec, socket.IPPROTO_UDP, len(segment)))


def redirect(spec):
    # the head of a packet that the receiver might have sent
    sent = header4(socket.IPPROTO_ICMP, spec["destination"], spec["target"], 8) + bytes(8)  # an echo reply
    message = struct.pack("!BBH", 5, 1, 0) + packed(spec["gateway"]) + sent
    return socket.IPPROTO_ICMP, sealed(message, 2, b"")


def header4(protocol, source, destination, size):
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 0, 0, 64, protocol, 0)
    return sealed(header + packed(source) + packed(destination), 10, b"")


def header6(protocol, source, destination, size):
    return struct.pack("!IHBB", 6 << 28, size, protocol, 64) + packed(source) + packed(destination)


def main(spec):
    protocol, body = {"tcp": tcp, "udp": udp, "redirect": redirect}[spec["kind"]](spec)
    is4 = ":" not in spec["source"]
    head = (header4 if is4 else header6)(protocol, spec["source"], spec["destination"], len(body))
    if "interface" in spec:
        out = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        to = (spec["interface"], 0x0800 if is4 else 0x86DD)
    else:
        out = socket.socket(socket.AF_INET if is4 else socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        to = (spec["destination"], 0)
    out.sendto(head + body, to)


for packet in json.loads(sys.argv[1]):
    main(packet)
