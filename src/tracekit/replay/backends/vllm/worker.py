"""What runs in the engine's interpreter: a vLLM that is given requests over a socket, and told when they arrive.

It knows nothing of traces: the recorder, loaded as a plugin, writes what is found. Messages are JSON objects:

    {"start": {…}}               -> {"version": …, "is_native": …, "taken_over": {argument: value}}
    {"run": {"requests": […]}}   -> {"ended": {id: {"token_ids": […], "finish_reason": …, "stop_reason": …}},
                                     "peak_bytes": …}
    any of them                  -> {"failed": "config" | "model" | "unavailable", "message": …}
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from operator import itemgetter
from typing import Any

from tracekit.errors import BackendUnavailableError, ConfigError, ModelError, TracekitError, nearest
from tracekit.memory import peak_memory

FORCED = "tracekit_forced"

# Of the recording's arguments, those that another release or generation takes over: they say what the model is.
_OF_THE_MODEL = ("dtype", "max_model_len")
_KINDS = ((ConfigError, "config"), (ModelError, "model"))


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    engine: Engine | None = None
    while True:
        try:
            message = json.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            if "start" in message:
                engine = Engine(**message["start"])
                answer = engine.description()
            else:
                assert engine is not None
                answer = engine.run(connection, **message["run"])
        except TracekitError as error:
            kind = next((kind for of_type, kind in _KINDS if isinstance(error, of_type)), "unavailable")
            answer = {"failed": kind, "message": str(error)}
        connection.send_bytes(json.dumps(answer).encode())


class Engine:
    """A vLLM of any release that tracekit records.

    Args:
        model: as it is named to the engine.
        arguments: of the engine, as they were asked for.
        recorded: release, generation and arguments of the engine that recorded; may be empty.
        mode: 'decode' or 'prefill'; 'free' where tokens are not given.

    Raises:
        ConfigError: the engine has no such argument.
        BackendUnavailableError: it does not start.
    """

    def __init__(self, model: str, arguments: dict[str, Any], recorded: dict[str, Any], mode: str) -> None:
        try:
            import vllm
            from vllm.engine.arg_utils import EngineArgs
        except Exception as error:
            raise BackendUnavailableError(
                f"{{python}} has no vLLM that can be imported ({_one_line(error)}); name an interpreter that has one"
            ) from error
        self._version = str(vllm.__version__).partition("+")[0]
        self._mode = mode
        known = {field.name for field in dataclasses.fields(EngineArgs)}
        for name in arguments:
            if name not in known:
                raise ConfigError(f"vLLM {self._version} has no engine argument '{name}'{nearest(name, known)}")
        try:
            generation = _generation(EngineArgs(model=model, **arguments).create_engine_config())
            self.is_native = mode == "decode" and generation == "v2"
            if self.is_native and "enable_trace_replay" not in known:
                raise BackendUnavailableError(
                    f"vLLM {self._version} cannot replay traces on Model Runner V2; switch that off with "
                    "--env VLLM_USE_V2_MODEL_RUNNER=0, or name another release"
                )
            self._taken_over = {
                name: value
                for name, value in self._of_recording(recorded, generation).items()
                if name in known and name not in arguments and not _gives_way(name, value, recorded, arguments)
            }
            native: dict[str, Any] = {"enable_trace_replay": True} if self.is_native else {}
            self._engine: Any = vllm.LLM(model=model, **self._taken_over, **arguments, **native).llm_engine
        except TracekitError:
            raise
        except Exception as error:
            raise BackendUnavailableError(
                f"vLLM {self._version} of {{python}} did not start: {_one_line(error)}; its output is in {{log}}"
            ) from error

    def _of_recording(self, recorded: Mapping[str, Any], generation: str) -> dict[str, Any]:
        """Returns arguments of the recording: all of them where this is its engine, else what the model is."""
        arguments: dict[str, Any] = recorded.get("engine_arguments", {})
        is_same = (str(recorded.get("version")).partition("+")[0], recorded.get("generation")) == (
            self._version,
            generation,
        )
        return {name: value for name, value in arguments.items() if is_same or name in _OF_THE_MODEL}

    def description(self) -> dict[str, Any]:
        return {"version": self._version, "is_native": self.is_native, "taken_over": self._taken_over}

    def run(self, connection: Connection, requests: list[dict[str, Any]], schedule: str | None) -> dict[str, Any]:
        """Runs requests to their ends.

        Args:
            connection: where somebody waits for the answer.
            requests: each with 'id', 'name' (the recorded id), 'prompt_token_ids', 'sampling' (arguments of
                SamplingParams), 'steps' (ids of the steps at which it was scheduled; may be empty) and 'lora' (the
                name, id and path of its adapter, or None).
            schedule: 'recorded', 'single', or None for all at once.

        Raises:
            ModelError: the engine refuses a request.
            BackendUnavailableError: it fails.
        """
        ended: dict[str, dict[str, Any]] = {}
        arrivals = _arrivals(requests, schedule, lambda: bool(self._engine.has_unfinished_requests()))
        for arriving in arrivals:
            for request in arriving:
                self._add(request)
            for output in self._step():
                if output.finished:
                    ended[output.request_id] = _ending(output.outputs[0])
            if connection.poll(0):
                # Nothing is sent to one who works: the other end has gone.
                raise SystemExit(1)
        return {"ended": ended, "peak_bytes": peak_memory()}

    def _step(self) -> list[Any]:
        try:
            outputs: list[Any] = self._engine.step()
        except Exception as error:
            raise BackendUnavailableError(
                f"vLLM {self._version} of {{python}} failed: {_one_line(error)}; its output is in {{log}}"
            ) from error
        return outputs

    def _add(self, request: Mapping[str, Any]) -> None:
        from vllm import SamplingParams

        sampling = dict(request["sampling"])
        if sampling.get("logit_bias"):
            sampling["logit_bias"] = {int(token_id): bias for token_id, bias in sampling["logit_bias"].items()}
        if self.is_native and FORCED in (sampling.get("extra_args") or {}):
            sampling["trace_decode_token_ids"] = sampling["extra_args"][FORCED]["token_ids"]
            sampling.pop("bad_words", None)  # refused together with it
        try:
            prompt = {"prompt_token_ids": request["prompt_token_ids"]}
            self._engine.add_request(
                request["id"], prompt, SamplingParams(**sampling), lora_request=_lora_request(request["lora"])
            )
        except Exception as error:
            raise ModelError(f"vLLM {self._version} refuses request '{request['name']}': {_one_line(error)}") from error


def _gives_way(name: str, value: Any, recorded: Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
    """Whether a recorded argument cannot stand beside one that was asked for: whole prompts need room in a step."""
    if name != "max_num_batched_tokens" or arguments.get("enable_chunked_prefill") is not False:
        return False
    longest = arguments.get("max_model_len", recorded.get("engine_arguments", {}).get("max_model_len"))
    return longest is None or value < longest


def _arrivals(
    requests: list[dict[str, Any]], schedule: str | None, is_busy: Callable[[], bool]
) -> Iterator[list[dict[str, Any]]]:
    """Yields before each step which requests arrive, until the last one has ended."""
    if schedule == "recorded":
        yield from _recorded_arrivals(requests, is_busy)
        return
    for together in [[request] for request in requests] if schedule == "single" else [requests]:
        yield together
        while is_busy():
            yield []


def _recorded_arrivals(requests: list[dict[str, Any]], is_busy: Callable[[], bool]) -> Iterator[list[dict[str, Any]]]:
    """Yields requests at the step at which they were first scheduled; where nothing runs, the next one comes at once.

    Sampled are the recorded tokens, so a step here stands for one there as long as both have the same limits.
    """
    places = {step: place for place, step in enumerate(sorted({step for of in requests for step in of["steps"]}))}
    waiting = deque(sorted(((places[of["steps"][0]] if of["steps"] else 0, of) for of in requests), key=itemgetter(0)))
    place = 0
    while waiting or is_busy():
        if not is_busy():
            place = max(place, waiting[0][0])
        arriving = []
        while waiting and waiting[0][0] <= place:
            arriving.append(waiting.popleft()[1])
        yield arriving
        place += 1


def _lora_request(adapter: Mapping[str, Any] | None) -> Any:
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter["name"], adapter["id"], adapter["path"])


def _ending(completion: Any) -> dict[str, Any]:
    stop_reason = completion.stop_reason
    return {
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "stop_reason": None if stop_reason is None else str(stop_reason),
    }


def _generation(config: Any) -> str:
    from vllm import envs

    is_v2 = getattr(config, "use_v2_model_runner", None)
    if is_v2 if is_v2 is not None else getattr(envs, "VLLM_USE_V2_MODEL_RUNNER", False):
        return "v2"
    return "v1" if getattr(envs, "VLLM_USE_V1", True) else "v0"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


if __name__ == "__main__":
    main()
