"""The devices of a plan, made present in this process: real ones found, missing ones stood in for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import TracebackType

from ktllama.lower.settings import LlamaSettings
from ktllama.runtime.device_binding import BoundDevice, device_names, require_real, resolve_devices
from ktllama.runtime.device_list import available, handle_of
from ktllama.runtime.library import Library
from ktllama.runtime.stand_ins import StandInServer, register, retire


class Attachment:
    """The devices that ``settings`` name, bound in this process; close it after every model that uses them.

    ``bound`` says what each name is here, ``handles`` gives llama.cpp's device of each name. ``server`` may be a
    stand-in server that was started early; it is used if it is needed, and stopped in any case. Otherwise a server
    with ``n_threads`` is started on need.

    Raises:
        DeviceError: when a device is missing and may not be stood in for.
        LlamaCppError: when stand-ins are needed and this build has no RPC backend, or they do not start.
    """

    def __init__(
        self,
        library: Library,
        settings: LlamaSettings,
        *,
        explicit: Collection[str] = (),
        stand_ins: bool = False,
        server: StandInServer | None = None,
        n_threads: int | None = None,
    ) -> None:
        self._library = library
        self._server = server
        self._n_threads = n_threads
        self._endpoint = ""
        try:
            here = available(library)
            found = resolve_devices(settings, here, explicit)
            if not stand_ins:
                require_real(found, here)
            self.bound: tuple[BoundDevice, ...] = self._stand_in(found)
        except BaseException:
            self.close()
            raise
        self.handles: Mapping[str, int] = {
            device.name: handle_of(library, device.backend_name) for device in self.bound
        }

    @property
    def stand_in_pid(self) -> int | None:
        """The process id of the stand-ins while they run."""
        return None if self._server is None else self._server.pid

    def close(self) -> None:
        """Stop the stand-ins. Safe to call twice."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._endpoint:
            retire(self._library, self._endpoint)
            self._endpoint = ""

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _stand_in(self, found: tuple[BoundDevice, ...]) -> tuple[BoundDevice, ...]:
        missing = [device for device in found if device.stand_in]
        if not missing:
            return found
        self._library.require_rpc()
        if self._server is None:
            self._server = StandInServer(len(missing), self._n_threads)
        self._endpoint = self._server.endpoint(avoid=self._library.retired)
        names = dict(zip((device.name for device in missing), register(self._library, self._endpoint), strict=False))
        return tuple(
            replace(device, backend_name=names[device.name]) if device.stand_in else device for device in found
        )


def n_possible_stand_ins(settings: LlamaSettings) -> int:
    """How many stand-ins the settings need where nothing but the CPU is present."""
    return len(device_names(settings)) - 1
