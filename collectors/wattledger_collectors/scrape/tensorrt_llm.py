"""TensorRT-LLM's `trtllm-serve`, whose page is /prometheus/metrics; names read in its source.

Per finished request, and only with `return_perf_metrics: true`; `num_requests_running` needs
`enable_iter_perf_stats: true`. Versions up to 1.1.0rc5 tell no tokens: no source, no step. Cached
tokens are told since 2026; before, prefill counts whole prompts.

Under `mpirun` the workers are not children of the server: name them by their job instead.
"""

from wattledger_collectors.scrape.names import Metric, NamesScraper, Source
from wattledger_collectors.scrape.protocol import Kind


def scraper() -> NamesScraper:
    """A scraper of TensorRT-LLM."""
    return NamesScraper(
        kind="tensorrt_llm",
        mend="set return_perf_metrics and enable_iter_perf_stats to true in its LLM arguments, "
        "url ends in /prometheus/metrics",
        sources=(
            Source(
                {
                    Kind.PROMPT: Metric("trtllm_prompt_tokens"),
                    Kind.CACHED: Metric("trtllm_prompt_cached_tokens"),
                    Kind.DECODE: Metric("trtllm_generation_tokens"),
                }
            ),
        ),
        finished=Metric("trtllm_request_success"),
        running=Metric("trtllm_num_requests_running"),
        model_label="model_name",
    )
