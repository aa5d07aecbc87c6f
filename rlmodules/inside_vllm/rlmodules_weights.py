"""Has vLLM's worker take new weights from a folder: ``--worker-extension-cls``, by PYTHONPATH.

vLLM's own ``reload_weights`` leaves tied embeddings wrong on the CPU: the head multiplies by a copy
of the embeddings that was packed when the model was loaded, and only layers that get weights of
their own are packed again. Here the packed ones are made anew.
"""

from pathlib import Path

from safetensors import safe_open

PACKED = "UnquantizedEmbeddingMethod"
"""vLLM's class of how embeddings and heads are held."""


class TakesWeights:
    """Mixed into vLLM's worker; ``/collective_rpc`` calls its methods."""

    def take_weights(self, folder):
        """Load every tensor of the safetensors in ``folder``; says how many there were.

        An exception that left this method would end vLLM at its next request: it is told instead.
        """
        try:
            files = sorted(Path(folder).glob("*.safetensors"))
            if not files:
                return {"error": f"there are no safetensors in {folder} on vLLM's machine"}
            read = []
            self.reload_weights(weights_iterator=tensors(files, read))
            for module in self.get_model().modules():
                method = getattr(module, "quant_method", None)
                if type(method).__name__ == PACKED:
                    method.process_weights_after_loading(module)
            return {"tensors": len(read)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}


def tensors(files, read):
    """(name, tensor) of all files, one at a time; ``read`` gets the names."""
    for path in files:
        with safe_open(str(path), "pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no dict
                read.append(name)
                yield name, file.get_tensor(name)
