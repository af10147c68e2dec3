"""A decoder of captions followed by the codes of their pictures (2102.12092)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_gen.capabilities import Tokenizer
from lightning_gen.networks.gpt import GPTCache, GPTNetwork, Memory


class TextGPTNetwork(GPTNetwork):
    """`GPTNetwork` of one sequence of text and codes: each code is told from the whole caption and the codes before.

    The sequence begins with a token of its own, then come T tokens of text and the codes. What comes out at a token of
    text is of the next one, with a head of its own; at the last one, and at codes, it is of the next code. So text
    never has a share of what is a code's, nor the reverse.

    A token of text goes in as a vector that is learnt for it plus one of its place, and is not rotated. Where a caption
    has ended, a vector stands that is learnt for the place alone: DALL-E's padding. A caption of nothing else is none,
    the null of guidance.

    Args:
        image_shape: (channels, height, width) of the codes.
        outputs: As in `GPTNetwork`, like all that is not named here.
        text: The tokenizer, of which the network takes length, number of tokens, and padding.
        width: Features of a token.
        layers: Blocks.
        heads: Of attention.
        dropout: As in `GPTNetwork`.
        label_dropout: Probability with which whoever trains the network drops a caption; 0 for a network that cannot be
            guided.

    Raises:
        ValueError: As `GPTNetwork`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        outputs: int,
        text: Tokenizer,
        *,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        dropout: float = 0.1,
        label_dropout: float = 0.1,
    ) -> None:
        sizes = {"width": width, "layers": layers, "heads": heads}
        super().__init__(image_shape, outputs, dropout=dropout, label_dropout=label_dropout, **sizes)
        self.before, self.padding = text.length, text.padding
        self.null_label = self.padding if label_dropout else None
        self.words = nn.Embedding(text.num_tokens, width)
        self.places = nn.Embedding(text.length, width)
        self.no_words = nn.Embedding(text.length, width)
        self.text_head = nn.Linear(width, text.num_tokens, bias=False)
        for embedding in (self.words, self.places, self.no_words):
            nn.init.normal_(embedding.weight, std=0.02)
        nn.init.zeros_(self.text_head.weight)

    def forward(  # type: ignore[override]
        self, images: Tensor, captions: Tensor, with_text: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What `embed` makes of codes, `[N, width C, H, W]`, to logits `[N, P, C, H, W]`.

        Args:
            images: What `embed` gave.
            captions: Tokens, int64 `[N, T]`.
            with_text: Whether also those of text are given, before them: `[N, T, number of tokens]`.

        Raises:
            ValueError: If a shape is another.
        """
        self.check_given(images)
        tokens = torch.cat([self._read(captions, len(images)), self._in_turn(images.flatten(2))[:, :-1]], dim=1)
        rotation = torch.cat([self._unmoved(self.before), self.rotation], dim=1)
        beside = self._beside(None)
        if beside is not None:  # text has no channels
            beside = torch.cat([beside.new_zeros(1, self.before, beside.shape[2]), beside], dim=1)
        text, codes = self._features(tokens, beside, rotation).tensor_split([self.before], dim=1)
        logits = self._logits(codes).unflatten(3, self.image_shape[1:])
        return (self.text_head(text), logits) if with_text else logits

    def text_logits(self, captions: Tensor) -> Tensor:
        """Logits of text alone, `[N, T, number of tokens]`, of tokens int64 `[N, T]`: no code comes before it."""
        tokens = self._read(captions, len(captions))[:, :-1]
        return self.text_head(self._features(tokens, None, self._unmoved(self.before)))

    def init_cache(  # type: ignore[override]
        self, batch: int, device: torch.device, captions: Tensor
    ) -> GPTCache:
        """The cache for `batch` pictures of which no code is known, but all of the text, which takes one pass."""
        cache = super().init_cache(batch, device)
        with torch.no_grad():
            tokens = self._read(captions, batch).to(cache.inputs)
            # The last one stands where `GPTNetwork` has its first, of which the first code comes out.
            cache.inputs[:, 0].unflatten(1, (-1, self.image_shape[0]))[:, :, -1] = tokens[:, -1]
            indices = torch.arange(self.before, device=device)
            mask = torch.ones(self.before, self.before, dtype=torch.bool, device=device).tril_()
            memories = [Memory(*each, indices, mask) for each in zip(cache.keys, cache.values, strict=True)]
            self._features(tokens[:, :-1], None, self._unmoved(self.before), memories)
        return cache

    def _read(self, captions: Tensor, batch: int) -> Tensor:
        """The tokens before the codes, `[N, 1 + T, width]`."""
        if captions.shape != (batch, self.before):
            raise ValueError(f"captions must be tokens [{batch}, {self.before}], got {list(captions.shape)}.")
        vectors = self.words(captions) + self.places.weight
        vectors = torch.where((captions == self.padding).unsqueeze(2), self.no_words.weight, vectors)
        return torch.cat([self._first(batch, None), vectors], dim=1)

    def _unmoved(self, tokens: int) -> Tensor:
        """Rotations by nothing, `[2, tokens, size / 2]`."""
        return self.rotation[:, :1].expand(-1, tokens, -1)  # as the first token, which has no place either
