"""One connection as a value: which frames may come now, and what each call on it still may do.

Law: no I/O; every transition is in ``TRANSITIONS``; whatever is not there is a WireError and the connection ends.
The side that opened the connection calls, the other side answers. Each call has two directions, input and
output; either is open until a frame flagged LAST went that way. Output and input are both metered by credit:
a sender may have at most ``WINDOW`` bytes under way that the receiver's user has not taken yet, so the memory
of a connection is bounded by calls x WINDOW whatever the other side does.
"""

from __future__ import annotations

from typing import Literal

from skate.core.errors import WireError
from skate.dataplane.wire.frames import (
    CALL,
    CANCEL,
    CHUNK,
    CREDIT,
    ERROR,
    FRAME_MAX,
    HEADER,
    HEADER_SIZE,
    HELLO,
    LAST,
    NAMES,
    READY,
    RECALL,
    REFUSED,
    RELEASE,
    SHARES,
    STARTED,
    VERSION,
    Cutter,
    Frame,
    pack,
    pack_count,
    unpack_count,
    unpack_ids,
)
from skate.dataplane.wire.head import Hello, decode_hello, encode_head
from skate.dataplane.wire.parts import Extent

WINDOW = 1 << 19  # bytes a sender may be ahead of the receiver's user, per call and direction; designs/0007
CHUNK_COST = 64  # what a chunk counts beside its bytes, so that empty chunks are bounded too
HELLO_MAX = 4096  # bytes of the first frame: who is no peer gets no memory
CALLS_MAX = 65_536  # calls open at once on one connection
IDS = 1 << 32  # of calls, as the header of a frame counts them

Role = Literal["caller", "callee"]

# Call states. "both": input and output open; "output": input is complete; "closed": nothing may follow.
BOTH, OUTPUT, CLOSED = 0, 1, 2

# (role that receives, frame kind, LAST?) -> {state: next state}; the other states refuse the frame.
TRANSITIONS: dict[tuple[Role, int, bool], dict[int, int]] = {
    ("caller", CHUNK, False): {BOTH: BOTH, OUTPUT: OUTPUT},
    ("caller", CHUNK, True): {BOTH: CLOSED, OUTPUT: CLOSED},
    ("caller", ERROR, False): {BOTH: CLOSED, OUTPUT: CLOSED},
    ("caller", REFUSED, False): {BOTH: CLOSED, OUTPUT: CLOSED},
    ("caller", CREDIT, False): {BOTH: BOTH, OUTPUT: OUTPUT},
    ("callee", CHUNK, False): {BOTH: BOTH},
    ("callee", CHUNK, True): {BOTH: OUTPUT},
    ("callee", CANCEL, False): {BOTH: CLOSED, OUTPUT: CLOSED},
    ("callee", CREDIT, False): {BOTH: BOTH, OUTPUT: OUTPUT},
}
CONNECTION_FRAMES: dict[Role, frozenset[int]] = {
    "caller": frozenset({STARTED, READY, SHARES}),
    "callee": frozenset({CALL, RECALL, RELEASE, SHARES}),
}


def _next(call: int) -> int:
    """The id after this one. Ids go round after ``IDS`` calls (a day at full load); 0 is the connection's own."""
    return call % (IDS - 1) + 1


def follows(call: int, last: int) -> bool:
    """Whether ``call`` comes after ``last``, ids going round: it is nearer ahead than behind."""
    return 0 < (call - last) % IDS < IDS // 2


class CallState:
    """What one call still may do, and the credit of its two directions."""

    __slots__ = ("arrived", "send_window", "state", "taken")

    def __init__(self, state: int) -> None:
        self.state = state
        self.send_window = WINDOW  # bytes we may still send
        self.arrived = 0  # bytes that came and are not yet credited back
        self.taken = 0  # of those, what our user has taken


class Connection:
    """Feed it what arrived, ask it for the bytes of what you want to say."""

    __slots__ = ("_cutter", "_last_call", "_opening", "calls", "peer_hello", "peer_name", "role", "shares")

    def __init__(self, role: Role, frame_max: int = FRAME_MAX) -> None:
        self.role: Role = role
        self.peer_name: str | None = None  # set by the other side's hello
        self.peer_hello: Hello | None = None
        self.shares = False  # the other side said that it can open our memory
        self.calls: dict[int, CallState] = {}
        self._opening = b""  # what came until the hello was whole
        self._cutter = Cutter(frame_max)
        self._last_call = 0

    # -- what arrives ---------------------------------------------------------------------------

    def feed(self, data: bytes) -> list[Frame]:
        """The frames in ``data`` that mean something now, in order. Late frames of ended calls are dropped.

        Raises WireError when the other side broke the protocol; the connection is of no use then.
        """
        if self.peer_name is None:
            data = self._take_hello(data)
        frames = self._cutter.feed(data)
        if self.role == "callee":
            return [frame for frame in frames if self._admit(frame)]
        admitted: list[Frame] = []
        calls = self.calls
        for frame in frames:
            # The common answer, one last chunk, straight: by the table it closes the call from every open state.
            if (frame[0] == CHUNK and frame[2] & LAST and calls.pop(frame[1], None) is not None) or self._admit(frame):
                admitted.append(frame)
        return admitted

    def _take_hello(self, data: bytes) -> bytes:
        """What follows the hello; nothing while that is not whole.

        The hello has a limit of its own, and a first call, of any size, may come in the same read.
        """
        opening = self._opening + data
        if len(opening) < HEADER_SIZE:
            self._opening = opening
            return b""
        length, _, kind, _, _ = HEADER.unpack_from(opening)
        if kind != HELLO:
            raise WireError("the connection did not open with a hello: the other side does not speak this protocol")
        if length > HELLO_MAX:
            raise WireError(f"a hello announces {length} bytes, above the limit of {HELLO_MAX}")
        end = HEADER_SIZE + length
        if len(opening) < end:
            self._opening = opening
            return b""
        hello = decode_hello(opening[HEADER_SIZE:end])
        if hello.version != VERSION:
            raise WireError(f"the other side speaks version {hello.version}, this side {VERSION}: update the older one")
        self.peer_name, self.peer_hello = hello.name, hello
        self._opening = b""
        return opening[end:]

    def _admit(self, frame: Frame) -> bool:
        kind, call, flags, _, body = frame
        if kind in CONNECTION_FRAMES[self.role]:
            self._check_connection_frame(kind, call, flags, body)
            return kind != SHARES  # a note for this table
        last = bool(flags & LAST) and kind == CHUNK
        moves = TRANSITIONS.get((self.role, kind, last))
        if moves is None:
            raise WireError(f"a {NAMES[kind]} frame may not come to the {self.role}")
        state = self.calls.get(call)
        if state is None:
            if follows(call, self._last_call):
                raise WireError(f"a {NAMES[kind]} frame names call {call}, which was never opened")
            return False  # the call ended here meanwhile
        after = moves.get(state.state)
        if after is None:
            raise WireError(f"a {NAMES[kind]} frame may not follow in call {call}, whose input is complete")
        if kind == CHUNK:
            state.arrived += len(body) + CHUNK_COST
            # one chunk may be larger than what is left, and the last one needs no credit at all
            if not last and state.arrived - len(body) > WINDOW + CHUNK_COST:
                raise WireError(f"call {call} sent more than its credit")
        elif kind == CREDIT:
            state.send_window = min(WINDOW, state.send_window + unpack_count(body))
        state.state = after
        if after == CLOSED:
            del self.calls[call]
        return True

    def _check_connection_frame(self, kind: int, call: int, flags: int, body: bytes) -> None:
        if kind == CALL:
            if not call or not follows(call, self._last_call) or call in self.calls:
                raise WireError(f"a CALL frame opens call {call}, which is not above the last one, {self._last_call}")
            if len(self.calls) >= CALLS_MAX:
                raise WireError(f"more than {CALLS_MAX} calls are open on one connection")
            self._last_call = call
            self.calls[call] = CallState(OUTPUT if flags & LAST else BOTH)
        elif kind == STARTED:
            unpack_ids(body)
        elif kind == SHARES:
            if body:
                raise WireError(f"a SHARES frame has a body of {len(body)} bytes instead of none")
            self.shares = True
        elif kind != RECALL:
            unpack_count(body)

    # -- what we say ----------------------------------------------------------------------------

    def hello(self, name: str, pid: int = 0, mark: int = -1, probe: Extent | None = None) -> bytes:
        """The frame that must go first; ``pid``, ``mark`` and ``probe``: see ``Hello``."""
        return pack(HELLO, 0, 0, 0, encode_head(Hello(VERSION, name, pid, mark, probe)))

    def open(self, complete: bool) -> int:
        """The id of a new call whose input is complete or not. Raises WireError when too many are open."""
        if len(self.calls) >= CALLS_MAX:
            raise WireError(f"more than {CALLS_MAX} calls are open on one connection")
        call = _next(self._last_call)
        while call in self.calls:  # one that is open since the ids went round
            call = _next(call)
        self._last_call = call
        self.calls[call] = CallState(OUTPUT if complete else BOTH)
        return call

    def spend(self, call: int, size: int) -> None:
        """Notes that a chunk of ``size`` bytes goes out for ``call``."""
        state = self.calls.get(call)
        if state is not None:
            state.send_window -= size + CHUNK_COST

    def may_send(self, call: int) -> bool:
        """Whether the other side has given credit for another chunk; true for ended calls (nothing is sent)."""
        state = self.calls.get(call)
        return state is None or state.send_window > 0

    def take(self, call: int, size: int) -> bytes:
        """Our user took a chunk of ``size`` bytes: the CREDIT frame that is due now, or nothing."""
        state = self.calls.get(call)
        if state is None:
            return b""
        state.taken += size + CHUNK_COST
        if state.taken < WINDOW // 4:
            return b""
        credit, state.taken = state.taken, 0
        state.arrived -= credit
        return pack(CREDIT, call, 0, 0, pack_count(min(credit, 0xFFFFFFFF)))

    def finish_input(self, call: int) -> None:
        """The caller sent its LAST chunk."""
        state = self.calls.get(call)
        if state is not None:
            state.state = OUTPUT

    def close(self, call: int) -> None:
        """The call ended on our side (answered, failed, refused or cancelled); later frames of it are dropped."""
        self.calls.pop(call, None)
