"""Models of Hugging Face that see regions: LXMERT and VisualBERT."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from schemas.base import Frozen
from workers.errors import UserError
from workers.models.base import (
    Capability,
    Embedded,
    EmbeddingModel,
    RegionModel,
    RegionOutput,
    Tokens,
    present,
)
from workers.models.region_model import StoredRegionModel, check_channels, read_labels
from workers.models.regions import RegionFeatures
from workers.models.tokens import tapped, word_tokens
from workers.models.transformer import Subwords


class RegionTransformerConfig(Frozen):
    """What decides the logits beside the weights and the answers."""

    family: str
    tokeniser: str
    """SHA-256 of its settings."""
    features: str
    """``RegionFeatures.digest``."""


class RegionTransformer(Subwords, StoredRegionModel, EmbeddingModel):
    """What both have in common. Regions that are not there are masked as keys of every attention.

    Both were trained with one score an answer, whose softmax is compared here.
    """

    provides = RegionModel.provides | {Capability.EMBEDDINGS}

    def __init__(
        self,
        net: Any,
        tokenizer: Any,
        answers: Sequence[str],
        features: RegionFeatures,
        config: RegionTransformerConfig,
        longest: int,
    ) -> None:
        super().__init__(features, longest)
        self.net, self.tokenizer = net, tokenizer
        self.answers, self.config = tuple(answers), config
        self.limit = net.config.max_position_embeddings

    def embed(self, canvas: Tensor, question: Tokens, answers: Sequence[int]) -> Embedded:
        with tapped([self.word_embeddings]) as outputs:
            logits = self.answer(canvas[None], [question]).logits[0, list(answers)]
        return Embedded(logits, outputs[0], tuple(word_tokens(self.tokenizer, question)))

    @property
    @abstractmethod
    def word_embeddings(self) -> nn.Module:
        """What looks the question's sub-tokens up."""


class Lxmert(RegionTransformer):
    """LXMERT (Tan and Bansal 2019): features and boxes, in fractions of the image."""

    def answer(self, regions: Tensor, questions: Sequence[Tokens]) -> RegionOutput:
        given = regions.to(self.weight_dtype)
        output = self.net(
            **self.asked(questions),
            visual_feats=given[..., 4:],
            visual_pos=given[..., :4],
            visual_attention_mask=present(regions).to(self.weight_dtype),
            return_dict=True,  # whatever an old configuration says
        )
        return RegionOutput(output.question_answering_score.float())

    @property
    def word_embeddings(self) -> nn.Module:
        return self.net.lxmert.embeddings.word_embeddings


class VisualBert(RegionTransformer):
    """VisualBERT (Li et al. 2019): features alone; where a region lies it does not know."""

    def answer(self, regions: Tensor, questions: Sequence[Tokens]) -> RegionOutput:
        kept = present(regions)
        output = self.net(
            **self.asked(questions),
            visual_embeds=regions[..., 4:].to(self.weight_dtype),
            visual_token_type_ids=kept.new_ones(kept.shape).long(),
            visual_attention_mask=kept.to(self.weight_dtype),
            return_dict=True,
        )
        return RegionOutput(output.logits.float())

    @property
    def word_embeddings(self) -> nn.Module:
        return self.net.visual_bert.embeddings.word_embeddings


KINDS: dict[str, type[RegionTransformer]] = {"lxmert": Lxmert, "visual_bert": VisualBert}
CHANNELS = {"lxmert": "visual_feat_dim", "visual_bert": "visual_embedding_dim"}
"""What each calls its number of features a region."""
ANSWERS = {"lxmert": "num_qa_labels", "visual_bert": "num_labels"}


def answers_of(config: Any, file: Path | None, where: str) -> tuple[str, ...]:
    """From the file, or from the checkpoint where it names them."""
    count = getattr(config, ANSWERS[config.model_type])
    if file is not None:
        return read_labels(file, count, "give the list that the model was trained with")
    own = tuple(config.id2label[i] for i in range(len(config.id2label)))
    if len(own) == count and own[:1] != ("LABEL_0",):
        return own
    raise UserError(
        f"{where} does not name its {count} answers; give model.answers_file, the list that it was "
        "trained with (LXMERT's trainval_label2ans.json, MMF's answers_vqa.txt)"
    )


def assemble(
    net: Any,
    tokenizer: Any,
    answers: Sequence[str],
    features: RegionFeatures,
    config: RegionTransformerConfig,
    longest: int,
    where: str,
) -> RegionTransformer:
    """The model, once the features are known to be such as it was trained on."""
    check_channels(features, getattr(net.config, CHANNELS[config.family]), where)
    model = KINDS[config.family](net, tokenizer, answers, features, config, longest)
    model.about = (
        f"{where}: {config.family}, one logit an answer, compared here by softmax; "
        f"{features.regions} regions an image at most"
    )
    return model
