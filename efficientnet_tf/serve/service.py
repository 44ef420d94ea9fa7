"""What REST and gRPC have in common: find the version, check the request, run it, count it."""

import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from efficientnet_tf.serve import examples, tensors
from efficientnet_tf.serve.batching import Batcher
from efficientnet_tf.serve.errors import ServingError, invalid
from efficientnet_tf.serve.limits import Limits
from efficientnet_tf.serve.metrics import LATENCY, REQUESTS, Metrics
from efficientnet_tf.serve.repository import Loaded, Repository, Status
from efficientnet_tf.serve.session import CLASSIFY, REGRESS, Signature


@dataclasses.dataclass(frozen=True)
class Target:
    """What a request is for.

    Attributes:
        name: of the model.
        version: its number; None is the newest.
        label: instead of a version.
        signature: empty for "serving_default".
    """

    name: str
    version: int | None = None
    label: str | None = None
    signature: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        version: that answered.
        signature: that was run.
        outputs: arrays by name.
    """

    version: int
    signature: Signature
    outputs: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a version can do.

    Attributes:
        version: its number.
        signatures: SignatureDef messages by name.
    """

    version: int
    signatures: Mapping[str, object]


class Service:
    """The calls of the API, for one model.

    Attributes:
        limits: of requests.
        model: name of the model.
    """

    def __init__(
        self, repository: Repository, batcher: Batcher, *, limits: Limits, metrics: Metrics
    ):
        """Uses what the caller has made, and stops none of it."""
        self.limits = limits
        self.model = repository.name
        self._repository = repository
        self._batcher = batcher
        self._metrics = metrics

    def ready(self) -> bool:
        """Whether a version is available."""
        return bool(self._repository.available())

    def predict(
        self,
        target: Target,
        read: Callable[[Signature], Mapping[str, np.ndarray]],
        *,
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        watch: Callable[[concurrent.futures.Future], None] = lambda future: None,
    ) -> Answer:
        """Runs a signature.

        Args:
            target: version and signature.
            read: gives the inputs, which fit the signature.
            outputs: names of those that are wanted; none for all.
            timeout: seconds that the client waits, if it told; the limits' at most.
            watch: is given the future of the answer; cancelling it drops a request that waits.

        Raises:
            ServingError: why there is no answer.
        """

        def prepare(signature):
            return read(signature), tensors.check_outputs(outputs, signature)

        return self._run(target, prepare, timeout, watch)

    def classify(self, target: Target, serialized: Sequence[bytes], **waiting) -> tuple:
        """Classifies `tf.Example`s; (Answer, (label, score) pairs of each example).

        Args:
            target: version and signature, whose method is Classify.
            serialized: the examples.
            **waiting: `timeout` and `watch` of `predict`.

        Raises:
            ServingError: why there is no answer.
        """
        answer = self._run_examples(target, CLASSIFY, serialized, **waiting)
        return answer, examples.classifications(answer.outputs, len(serialized))

    def regress(self, target: Target, serialized: Sequence[bytes], **waiting) -> tuple:
        """`classify` for signatures whose method is Regress; (Answer, a value of each example)."""
        answer = self._run_examples(target, REGRESS, serialized, **waiting)
        return answer, examples.regressions(answer.outputs, len(serialized))

    def statuses(self, target: Target) -> tuple[Status, ...]:
        """Tells the states of a version, or of all.

        Raises:
            ServingError: NOT_FOUND.
        """
        if target.name != self.model:
            raise ServingError("NOT_FOUND", f"Could not find any versions of model {target.name}")
        return self._repository.statuses(target.version, target.label)

    def metadata(self, target: Target) -> Metadata:
        """Tells the signatures of a version.

        Raises:
            ServingError: NOT_FOUND.
        """
        loaded = self._acquire(target)
        try:
            return Metadata(loaded.version, loaded.session.signature_protos)
        finally:
            loaded.release()

    @contextlib.contextmanager
    def measured(self, api: str, entrypoint: str, target: Target) -> Iterator[None]:
        """Counts a request and its time.

        Args:
            api: "Predict", "Classify", "Regress" or "GetModelMetadata".
            entrypoint: "REST" or "GRPC".
            target: whose name is only told when there is such a model; anything may be in it.
        """
        name = target.name if target.name == self.model else "unknown"
        start = time.perf_counter()
        status = "OK"
        try:
            yield
        except ServingError as error:
            status = error.code
            raise
        except BaseException:
            status = "INTERNAL"
            raise
        finally:
            micros = 1e6 * (time.perf_counter() - start)
            self._metrics.count(REQUESTS, model_name=name, status=status)
            self._metrics.observe(LATENCY, micros, model_name=name, API=api, entrypoint=entrypoint)

    def _acquire(self, target: Target) -> Loaded:
        if not target.name:
            raise invalid("ModelSpec has no name specified.")
        if target.name != self.model:
            version = target.version
            asked = (
                f"Latest({target.name})"
                if version is None
                else (f"Specific({target.name}, {version})")
            )
            raise ServingError("NOT_FOUND", f"Servable not found for request: {asked}")
        return self._repository.acquire(target.version, target.label)

    def _run_examples(self, target, method, serialized, *, timeout=None, watch=lambda f: None):
        def prepare(signature):
            examples.check_method(signature, method)
            array = np.empty(len(serialized), object)
            array[:] = serialized
            signature.inputs["inputs"].check("inputs", array)
            return {"inputs": array}, tuple(signature.outputs)

        return self._run(target, prepare, timeout, watch)

    def _run(self, target: Target, prepare, timeout, watch) -> Answer:
        seconds = self.limits.request_timeout
        seconds = seconds if timeout is None else min(seconds, timeout)
        end = time.monotonic() + seconds
        loaded = self._acquire(target)
        try:
            signature = loaded.session.find(target.signature)
            inputs, outputs = prepare(signature)
            self.limits.check_rows(inputs)
            self.limits.check_pictures(inputs)
            future = self._batcher.submit(
                loaded.session, signature, inputs, outputs, timeout=end - time.monotonic()
            )
        except BaseException:
            loaded.release()
            raise
        # Not when this call ends: a run goes on when its client has stopped waiting.
        future.add_done_callback(lambda _: loaded.release())
        watch(future)
        try:
            values = future.result(max(0.0, end - time.monotonic()))
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise ServingError("DEADLINE_EXCEEDED", f"No answer within {seconds:g} s") from None
        except concurrent.futures.CancelledError:
            raise ServingError("CANCELLED", "The client cancelled the request") from None
        return Answer(loaded.version, signature, values)
