"""Choosing the next token from logits.

One order, always this one (llama.cpp's). A stage whose setting is neutral is left out; each sees what the ones before it left.

| | stage | fields (neutral) | what it does |
|---|---|---|---|
| 1 | named tokens | `logit_bias` (), `allowed_tokens` (None), `banned_tokens` () | adds to logits; takes out what is not allowed, or banned |
| 2 | penalties | `repetition_penalty` (1), `frequency_penalty`, `presence_penalty` (0), `penalty_range` | lower the logits of tokens that came before: repetition in prompt and answer, the others in the answer alone |
| 3 | DRY | `dry_multiplier` (0), `dry_base`, `dry_allowed_length`, `dry_range`, `dry_breakers` | lowers the logit of what would go on with a repetition, the more the longer that is |
| 4 | top-n-sigma | `top_n_sigma` (0) | keeps logits within so many standard deviations of the largest |
| 5 | top-k | `top_k` (0) | keeps the k likeliest |
| 6 | typical | `typical_p` (1) | keeps what is about as surprising as expected, until it has that probability |
| 7 | top-p | `top_p` (1) | keeps the likeliest until they have that probability; the token that crosses it stays |
| 8 | min-p | `min_p` (0) | keeps what is at least so many times as likely as the likeliest |
| 9 | XTC | `xtc_probability` (0), `xtc_threshold` | by chance, leaves out what reaches the threshold but the least likely of it |
| 10 | temperature | `temperature` (1), `dynatemp_range` (0), `dynatemp_exponent` | divides logits; so the cuts are made on the model's own probabilities |
| 11 | mirostat 2 | `mirostat_tau` (0), `mirostat_eta` | keeps what surprises less than a bound, which follows the surprise that came |
| 12 | draw | `seed` | what is left shares [0, 1) by probability, in the order of ids |

A temperature of 0 is greedy: the largest logit after stage 3, ties to the smallest id; nothing is drawn. `logprobs` are of the model's
own logits, before any stage.
"""

from qtransformers.sampling.definition import Breaks
from qtransformers.sampling.sampler import Logprob, Sampler, breaks_of, logprobs
from qtransformers.sampling.settings import Sampling, SamplingOptions

__all__ = ["Breaks", "Logprob", "Sampler", "Sampling", "SamplingOptions", "breaks_of", "logprobs"]
