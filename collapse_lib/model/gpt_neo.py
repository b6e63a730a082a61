"""GPT-Neo, small enough to read in one sitting; weights are interchangeable with transformers' ``GPTNeoForCausalLM``.

Two things set GPT-Neo apart from GPT-2: attention is **not** divided by the square root of the head size, and layers alternate between
global attention and local attention, which sees the last ``window_size`` tokens, the token itself included. The paper's models
(section 5.1.1) are the ones called 1M (8 layers, hidden 64, 3,745,984 parameters) and 33M (4 layers, hidden 768, 68,514,048 parameters).

Shapes in the comments: B sequences, T positions, H hidden, N heads, D = H / N, V vocabulary, R = B * T rows.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from collapse_lib.experiment.errors import UserError, first_line
from collapse_lib.experiment.files import naming, read_json
from collapse_lib.model.loss import IGNORED, summed_cross_entropy
from collapse_lib.model.narrow_attention import NARROW, narrow_attention

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import ModelSettings

# What transformers lets a configuration change and this model does not: the values are those of every published GPT-Neo.
FIXED_FIELDS = {
    "model_type": "gpt_neo",
    "activation_function": "gelu_new",
    "intermediate_size": None,  # 4 * hidden_size
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
UNUSED_FIELDS = {"attention_dropout": 0.0, "embed_dropout": 0.0, "resid_dropout": 0.0}


@dataclass(frozen=True)
class GPTNeoConfig:
    """Shape of a GPT-Neo. ``attention_pattern`` is repeated over the layers, so ("global", "local") alternates."""

    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    attention_pattern: tuple[str, ...] = ("global", "local")
    window_size: int = 256
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    eos_token_id: int = 0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def attention_layers(self) -> tuple[str, ...]:
        """The kind of attention of each layer, "global" or "local"."""
        return tuple(self.attention_pattern[i % len(self.attention_pattern)] for i in range(self.num_layers))

    def keys_seen(self, context: int) -> list[int]:
        """Keys that each layer attends to for a token with ``context`` tokens in view, itself included."""
        return [min(context, self.window_size) if kind == "local" else context for kind in self.attention_layers]

    @classmethod
    def from_settings(cls, settings: ModelSettings, vocab_size: int, eos_token_id: int) -> GPTNeoConfig:
        """The configuration that a protocol's model section and a tokenizer describe."""
        fields = {**vars(settings), "attention_pattern": tuple(settings.attention_pattern)}
        return cls(vocab_size=vocab_size, eos_token_id=eos_token_id, **fields)

    @classmethod
    def from_hf(cls, fields: dict[str, Any]) -> GPTNeoConfig:
        """Read the fields of a transformers ``config.json``; ``UserError`` when it describes something other than a plain GPT-Neo."""
        for name, allowed in FIXED_FIELDS.items():
            if fields.get(name, allowed) != allowed:
                raise UserError(f"The model configuration has {name} = {fields[name]!r}, but only {allowed!r} is supported.")
        try:
            layers = tuple(kind for kinds, repeats in fields["attention_types"] for kind in kinds * repeats)
            if len(layers) != fields["num_layers"] or not set(layers) <= {"global", "local"}:
                wanted = f"{fields['num_layers']} layers, each global or local"
                raise UserError(f"The model configuration's attention_types are {fields['attention_types']}, which is not {wanted}.")
            # the shortest pattern that, repeated, gives these layers
            period = next(p for p in range(1, len(layers) + 1) if all(layers[i] == layers[i % p] for i in range(len(layers))))
            return cls(
                vocab_size=fields["vocab_size"],
                num_layers=fields["num_layers"],
                hidden_size=fields["hidden_size"],
                num_heads=fields["num_heads"],
                attention_pattern=layers[:period],
                window_size=fields["window_size"],
                max_position_embeddings=fields["max_position_embeddings"],
                initializer_range=fields["initializer_range"],
                eos_token_id=fields["eos_token_id"],
            )
        except KeyError as missing:
            raise UserError(f"The model configuration lacks the field {missing}.") from None
        except (TypeError, ValueError):
            raise UserError(f"The model configuration's attention_types are {fields['attention_types']}, not [[[kind, ...], times], ...].") from None

    def to_hf(self) -> dict[str, Any]:
        """The fields of a transformers ``config.json``."""
        fields = {name: value for name, value in asdict(self).items() if name != "attention_pattern"}
        pattern, times = list(self.attention_pattern), self.num_layers // len(self.attention_pattern)
        if times * len(pattern) != self.num_layers:
            pattern, times = list(self.attention_layers), 1
        return {
            "architectures": ["GPTNeoForCausalLM"],
            **FIXED_FIELDS,
            **UNUSED_FIELDS,
            **fields,
            "bos_token_id": self.eos_token_id,  # one special token both ends and begins stories
            "attention_types": [[pattern, times]],
            "attention_layers": list(self.attention_layers),
            "dtype": "float32",
        }


@functools.lru_cache(maxsize=16)
def band_mask(length: int, window: int, device: torch.device) -> Tensor:
    """[T, T] bool: query i may see key j when i - window < j <= i. Kept, because every local layer of every step asks for the same one."""
    with torch.inference_mode(False):  # sampling may be the first to ask, and training could not use a mask made for inference alone
        position = torch.arange(length, device=device)
        distance = position[:, None] - position[None, :]  # [T, T], query minus key
        return (distance >= 0) & (distance < window)


class Linear(nn.Linear):
    """A linear map whose product can run in another dtype than that of its weights.

    Not torch's autocast, whose casts around attention, softmax and LayerNorm cost a small model more on a CPU than it saves in products.
    """

    products: torch.dtype | None = None  # None: the dtype of the weights, or autocast's

    def forward(self, x: Tensor) -> Tensor:
        """[..., out], in the dtype of the product. The weights' gradients have the weights' dtype."""
        return linear(x, self.weight, self.bias, self.products)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """``F.linear``, in ``dtype`` if one is given."""
    if dtype is None:
        return F.linear(x, weight, bias)
    return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


class Rows(NamedTuple):
    """The positions of a padded batch that are worked on: what is done to each of them by itself need not be done to padding."""

    batch: int  # B
    length: int  # T
    index: Tensor  # [R] int64, of the B x T positions

    @classmethod
    def of(cls, kept: Tensor) -> Rows:
        """Those where ``kept``, [B, T] bool, is true."""
        return cls(*kept.shape, kept.flatten().nonzero()[:, 0])

    def pad(self, x: Tensor) -> Tensor:
        """[B, T, H] of [R, H], with zeros for padding."""
        return x.new_zeros(self.batch * self.length, x.shape[-1]).index_copy(0, self.index, x).view(self.batch, self.length, -1)

    def take(self, x: Tensor) -> Tensor:
        """[R, H] of [B, T, H]."""
        return x.flatten(0, 1).index_select(0, self.index)


class SelfAttention(nn.Module):
    def __init__(self, config: GPTNeoConfig, kind: str):
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.window = config.window_size if kind == "local" else config.max_position_embeddings
        self.k_proj = Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = Linear(config.hidden_size, config.hidden_size, bias=False)
        self.q_proj = Linear(config.hidden_size, config.hidden_size, bias=False)
        self.out_proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, keys_values: list[tuple[Tensor, Tensor]] | None, rows: Rows | None) -> Tensor:
        projected = self._project(x)
        if rows is not None:
            projected = map(rows.pad, projected)
        q, k, v = (heads.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for heads in projected)  # [B, N, T, D] each
        if keys_values is not None:
            keys_values.append((k, v))
        attend = narrow_attention if self.head_dim < NARROW and x.device.type == "cpu" else self._fused
        y = attend(q, k, v, self.window)  # [B, N, T, D]
        y = y.transpose(1, 2).flatten(2)  # [B, T, H]
        return self.out_proj(y if rows is None else rows.take(y))

    def _project(self, x: Tensor) -> Iterable[Tensor]:
        """Queries, keys and values, [..., H] each."""
        projections = self.q_proj, self.k_proj, self.v_proj
        if (dtype := self.q_proj.products) is None:
            return [project(x) for project in projections]
        weights = torch.cat([project.weight for project in projections])  # one product; torch's attention goes back slowly in bf16, hence fp32
        return linear(x, weights, None, dtype).float().chunk(3, -1)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        """What ``narrow_attention`` computes, by torch's fused kernels."""
        T = q.shape[2]
        short = window >= T  # then the window hides nothing, and the plain causal kernel is the fast one
        mask = None if short else band_mask(T, window, q.device)
        pad = -self.head_dim % 8 if q.is_cuda else 0  # the fused CUDA kernels want multiples of 8; zeros change no dot product
        if pad:
            q, k, v = (F.pad(heads, (0, pad)) for heads in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=short, scale=1.0)  # [B, N, T, D]; GPT-Neo does not scale
        return y[..., : self.head_dim]


class Attention(nn.Module):
    """A level with no work of its own: it gives the parameters the names they have in published checkpoints."""

    def __init__(self, config: GPTNeoConfig, kind: str):
        super().__init__()
        self.attention = SelfAttention(config, kind)


class MLP(nn.Module):
    def __init__(self, config: GPTNeoConfig):
        super().__init__()
        self.c_fc = Linear(config.hidden_size, 4 * config.hidden_size)
        self.c_proj = Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: GPTNeoConfig, kind: str):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size)
        self.attn = Attention(config, kind)
        self.ln_2 = nn.LayerNorm(config.hidden_size)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, keys_values: list[tuple[Tensor, Tensor]] | None, rows: Rows | None) -> Tensor:
        x = x + self.attn.attention(self.ln_1(x), keys_values, rows)
        return x + self.mlp(self.ln_2(x))


class GPTNeo(nn.Module):
    """GPT-Neo with its head tied to the token embedding.

    ``seed`` fixes the initial weights: N(0, ``initializer_range``) for matrices and embeddings, zero for biases, one for LayerNorm.
    ``None`` leaves them unset, for weights that are about to be loaded.
    """

    def __init__(self, config: GPTNeoConfig, seed: int | None):
        super().__init__()
        self.config = config
        self.rounded_head: Tensor | None = None  # the output matrix in the dtype of products, of a model that is not trained
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.hidden_size),
                "wpe": nn.Embedding(config.max_position_embeddings, config.hidden_size),
                "h": nn.ModuleList(Block(config, kind) for kind in config.attention_layers),
                "ln_f": nn.LayerNorm(config.hidden_size),
            }
        )
        if seed is not None:
            self._initialize(seed)

    @torch.no_grad()
    def _initialize(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, self.config.initializer_range, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()

    @property
    def head(self) -> Tensor:
        """[V, H] output matrix: the token embedding itself."""
        return self.transformer.wte.weight

    @property
    def products(self) -> torch.dtype | None:
        """The dtype that matrix products run in; None where it is that of the weights, or autocast's."""
        return self.transformer.h[0].mlp.c_fc.products

    @contextmanager
    def multiplying_in(self, dtype: torch.dtype) -> Iterator[None]:
        """Train with matrix products in ``dtype``; weights, gradients, attention, LayerNorm, softmax and sums stay fp32."""
        self._set_products(dtype)
        try:
            yield
        finally:
            self._set_products(torch.float32)

    def rounded(self, dtype: torch.dtype) -> GPTNeo:
        """A model to sample from and to score with, whose products are those of ``multiplying_in(dtype)``; fp32 gives the model itself.

        What is multiplied is rounded once and cannot be trained; the rest is shared.
        """
        if dtype == torch.float32:
            return self
        with torch.device("meta"):
            model = GPTNeo(self.config, seed=None)
        model.load_state_dict(self.state_dict(), assign=True)
        model.requires_grad_(False).train(self.training)
        for module in model.modules():
            if isinstance(module, Linear):
                module.to(dtype)
        model._set_products(dtype)
        model.rounded_head = self.head.detach().to(dtype)
        return model

    def _set_products(self, dtype: torch.dtype) -> None:
        for module in self.modules():
            if isinstance(module, Linear):
                module.products = None if dtype == torch.float32 else dtype

    @property
    def output_matrix(self) -> Tensor:
        """[V, H], the head as products take it."""
        if self.rounded_head is not None:
            return self.rounded_head
        return self.head if self.products is None else self.head.to(self.products)

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, keys_values: list[tuple[Tensor, Tensor]] | None = None, kept: Tensor | None = None
    ) -> Tensor:
        """Final hidden states, after the last LayerNorm.

        Args:
            tokens: [B, T] int64.
            positions: [T] or [B, T] int64; 0 .. T-1 when not given.
            keys_values: a list to which every layer appends its keys and values, [B, N, T, D] each; sampling starts its cache from them.
            kept: [B, T] bool, a beginning of each row; what comes after it is padding, and no work is done for it.

        Returns:
            [B, T, H]; with ``kept``, [R, H] for the R positions where it is true.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        rows = None
        if kept is not None:
            rows, tokens, positions = Rows.of(kept), tokens[kept], positions.expand_as(tokens)[kept]
        x = self.transformer.wte(tokens) + self.transformer.wpe(positions)  # [B, T, H] or [R, H]
        for block in self.transformer.h:
            x = block(x, keys_values, rows)
        return self.transformer.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits in fp32, [..., V], for hidden states [..., H]."""
        return linear(hidden, self.output_matrix, None, self.products).float()

    def loss(self, tokens: Tensor, targets: Tensor, chunk_rows: int | None = None) -> tuple[Tensor, Tensor]:
        """Cross entropy in nats, summed over the targets; see ``loss.summed_cross_entropy``.

        Args:
            tokens: [B, T] int64.
            targets: [B, T] int64, the token that should follow each position; -100 where there is none.
            chunk_rows: positions a chunk; chosen by device when not given. It changes rounding only.

        Returns:
            The summed loss (fp32, differentiable once) and the number of targets (int64), both scalars on the model's device.
        """
        counted = targets != IGNORED  # [B, T]
        # A GPU would have to wait for how many positions there are up to the last target of each row.
        if tokens.is_cuda or (kept := counted.flip(1).cumsum(1).flip(1) > 0).all():
            hidden, asked = self(tokens).flatten(0, 1), targets.flatten()
        else:
            hidden, asked = self(tokens, kept=kept), targets[kept]
        return summed_cross_entropy(hidden, self.head, asked, chunk_rows, self.products), counted.sum()

    def num_parameters(self) -> int:
        """Parameters, the tied head counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, context: int) -> int:
        """FLOP of one token's forward pass with ``context`` tokens in view, itself included; training takes three times that."""
        c = self.config
        trunk = 2 * 12 * c.hidden_size**2 * c.num_layers  # q, k, v, out: 4 H^2; the MLP: 8 H^2; a multiplication and an addition each
        attention = sum(2 * 2 * c.hidden_size * keys for keys in c.keys_seen(context))  # scores and the weighted sum
        return trunk + attention + 2 * c.hidden_size * c.vocab_size

    def kv_bytes_per_token(self, context: int, bytes_per_value: int = 4) -> int:
        """Bytes of cached keys and values read to decode one token with ``context`` tokens in view."""
        return sum(2 * self.config.hidden_size * keys * bytes_per_value for keys in self.config.keys_seen(context))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``: a folder that transformers' ``AutoModelForCausalLM.from_pretrained`` opens."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with naming(folder / "config.json"):
            (folder / "config.json").write_text(json.dumps(self.config.to_hf(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> GPTNeo:
        """Open a folder that ``save_pretrained`` wrote, this one's or transformers'; weights become fp32 on the CPU.

        Raises ``UserError`` when a file is missing or the weights are not those of the configuration.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise UserError(f"There is no {name} in the model folder '{folder}'.")
        config = GPTNeoConfig.from_hf(read_json(folder / "config.json", remedy="restore it, or have the model made again"))
        with torch.device("meta"):
            model = cls(config, seed=None)
        # Older checkpoints also carry the tied head and the attention masks, which this model makes for itself.
        redundant = ("lm_head.weight", ".attn.attention.bias", ".attn.attention.masked_bias")
        try:
            stored = load_file(folder / "model.safetensors")
        except SafetensorError as error:
            raise UserError(f"{folder / 'model.safetensors'} is damaged ({first_line(error)}); restore it, or have the model made again.") from None
        weights = {name: value.float() for name, value in stored.items() if not name.endswith(redundant)}
        expected = {name: value.shape for name, value in model.state_dict().items()}
        shapes = {name: value.shape for name, value in weights.items()}
        if wrong := sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name)):
            raise UserError(f"The weights in '{folder}' are not those of its config.json: '{wrong[0]}' is missing, unknown or of another shape.")
        model.load_state_dict(weights, assign=True)
        return model.requires_grad_(True)
