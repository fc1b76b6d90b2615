"""The search of TAP and PAIR as PyRIT runs it: its target, its attacker, its scorer, its memory.

Importing this needs the extra `attacks`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from pyrit.common.singleton import Singleton
from pyrit.executor import attack
from pyrit.executor.attack.multi_turn.tree_of_attacks import TAPAttackScoringConfig
from pyrit.memory import CentralMemory, SQLiteMemory
from pyrit.memory.memory_models import Base
from pyrit.models import Score, construct_response_from_request
from pyrit.prompt_target import PromptTarget, TargetCapabilities, TargetConfiguration
from pyrit.score import FloatScaleThresholdScorer
from pyrit.score.float_scale.float_scale_scorer import MessageFloatScaleScorer
from pyrit.score.scorer_prompt_validator import ScorerPromptValidator

if TYPE_CHECKING:
    from ftlab.evals.attack_search import RedTeamConfig, Search

CAPABILITIES = TargetCapabilities(
    supports_multi_turn=True, supports_system_prompt=True, supports_editable_history=True
)


def run(search: Search, config: RedTeamConfig) -> None:
    """Search for one prompt; raise what stopped the model or the attacker."""
    logger = logging.getLogger("pyrit")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it would print rewrites of harmful prompts
    try:
        with _own_memory():
            executor = _executor(search, config)
            asyncio.run(executor.execute_async(objective=search.sample.question))
    except Exception as error:
        search.failed = search.failed or error
    finally:
        logger.setLevel(level)
    if search.failed:
        raise search.failed


def _executor(search: Search, config: RedTeamConfig) -> attack.TreeOfAttacksWithPruningAttack:
    scorer = FloatScaleThresholdScorer(scorer=Scorer(search=search), threshold=1.0)
    parts = {
        "objective_target": Target(search=search),
        "attack_adversarial_config": attack.AttackAdversarialConfig(target=Attacker(search=search)),
        "attack_scoring_config": TAPAttackScoringConfig(objective_scorer=scorer),
        "tree_width": config.width,
        "tree_depth": config.depth,
    }
    if config.method == "pair":
        return attack.PAIRAttack(**parts)
    return attack.TreeOfAttacksWithPruningAttack(
        **parts,
        branching_factor=config.branching,
        on_topic_checking_enabled=search.attacker.checks_topic,
    )


@contextlib.contextmanager
def _own_memory():
    """Give PyRIT a memory in RAM for this block, and put the caller's own back."""
    before = CentralMemory._memory_instance
    memory = Memory(db_path=":memory:", skip_schema_migration=True)
    Base.metadata.create_all(memory.engine)  # a tenth of the time of its 20 migrations
    CentralMemory._memory_instance = memory
    try:
        yield
    finally:
        CentralMemory._memory_instance = before
        Singleton._instances.pop(Memory, None)
        memory.dispose_engine()


class Memory(SQLiteMemory):
    """A class of its own: PyRIT's has one instance per process."""


class Target(PromptTarget):
    """The model under attack, as PyRIT sees it."""

    def __init__(self, *, search: Search):
        self.search = search
        super().__init__()

    async def _send_prompt_to_target_async(self, *, normalized_conversation):
        request = normalized_conversation[-1].message_pieces[0]
        text = await self.search.ask(request.converted_value, request.conversation_id)
        return [construct_response_from_request(request, [text])]


class Attacker(PromptTarget):
    """The attacker, as PyRIT sees it."""

    _DEFAULT_CONFIGURATION = TargetConfiguration(capabilities=CAPABILITIES)

    def __init__(self, *, search: Search):
        self.search = search
        super().__init__()

    async def _send_prompt_to_target_async(self, *, normalized_conversation):
        pieces = [message.message_pieces[0] for message in normalized_conversation]
        chat = [{"role": p.api_role, "content": p.converted_value} for p in pieces]
        return [construct_response_from_request(pieces[-1], [self.search.attack(chat)])]


class Scorer(MessageFloatScaleScorer):
    """The judge, as PyRIT sees it."""

    def __init__(self, *, search: Search):
        self.search = search
        super().__init__(validator=ScorerPromptValidator(supported_data_types=["text"]))

    def _build_identifier(self):
        return self._create_identifier(params={"judge": self.search.plan.judges[0].spec})

    async def _score_piece_async(self, message_piece, *, objective=None):
        score = Score(
            score_value=str(self.search.scores[message_piece.conversation_id]),
            score_value_description="verdict",
            score_type="float_scale",
            score_rationale="",
            score_metadata=None,
            message_piece_id=message_piece.id,
            scorer_class_identifier=self.get_identifier(),
        )
        return [score]
