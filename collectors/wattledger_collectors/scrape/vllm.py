"""vLLM where it may not be hooked; names read in vLLM 0.32.0. The hook tells far more.

The counters move with every engine step, but a prompt that is prefilled in chunks is counted
whole at its last chunk (vLLM issue 51261): prefill looks late. `prompt_tokens_by_source` tells
what was computed; before it came (0.16.0) the whole prompt counts, cached tokens included.
Tokens that the engine took over from another one (`external_kv_transfer`) are in neither.
"""

from wattledger_collectors.scrape.names import Metric, NamesScraper, Source
from wattledger_collectors.scrape.protocol import Kind

_DECODE = Metric("vllm:generation_tokens")
_BY_SOURCE = "vllm:prompt_tokens_by_source"


def scraper() -> NamesScraper:
    """A scraper of vLLM; engines of one server (data parallel) add up."""
    return NamesScraper(
        kind="vllm",
        mend="leave out --disable-log-stats",
        sources=(
            Source(
                {
                    Kind.PREFILL: Metric(_BY_SOURCE, {"source": "local_compute"}),
                    Kind.CACHED: Metric(_BY_SOURCE, {"source": "local_cache_hit"}),
                    Kind.DECODE: _DECODE,
                }
            ),
            Source({Kind.PROMPT: Metric("vllm:prompt_tokens"), Kind.DECODE: _DECODE}),
        ),
        finished=Metric("vllm:request_success"),
        running=Metric("vllm:num_requests_running"),
        model_label="model_name",
    )
