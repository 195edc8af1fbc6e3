"""Triton with its TensorRT-LLM backend, port 8002; names read in the backend's source.

Sums of histograms, told with a finished request. A model that is loaded anew starts its counters
anew while the others go on. It does not say what its KV cache saved: prefill counts whole prompts.
"""

from wattledger_collectors.scrape.names import Metric, NamesScraper, Source
from wattledger_collectors.scrape.protocol import Kind

_INPUT = {"response_metric_type": "total_input_tokens"}
_OUTPUT = {"response_metric_type": "total_output_tokens"}


def scraper() -> NamesScraper:
    """A scraper of Triton."""
    return NamesScraper(
        kind="triton",
        mend="leave its metrics on (--allow-metrics); the TensorRT-LLM backend of 2024 or later",
        sources=(
            Source(
                {
                    Kind.PROMPT: Metric("nv_llm_input_token_len_sum", _INPUT),
                    Kind.DECODE: Metric("nv_llm_output_token_len_sum", _OUTPUT),
                }
            ),
        ),
        finished=Metric("nv_llm_output_token_len_count", _OUTPUT),
        running=Metric("nv_trt_llm_request_metrics", {"request_type": "active"}),
        epoch_label="model",
        model_label="model",
    )
