"""Text generation with any causal language model of transformers."""

from transformers import AutoModelForCausalLM

from serve.catalog.model_config import ModelConfig
from serve.handlers.base import Job, Request
from serve.handlers.generation import decoder
from serve.handlers.generation.decoder import Decoder, add_end_token
from serve.handlers.generation.engine import Engine
from serve.handlers.generation.lone_decoder import LoneDecoder
from serve.handlers.generation.openai import OpenAIReader
from serve.handlers.generation.options import TextGenerationOptions
from serve.handlers.generation.passes import merge_products, pass_of
from serve.handlers.generation.prefix_cache import PrefixCache
from serve.handlers.generation.request import GenerationItem, InvocationReader, PromptReader
from serve.handlers.generation.text_decoder import TokenTexts
from serve.handlers.huggingface import independence, pretrained
from serve.http.addresses import CHAT, COMPLETIONS, INVOCATIONS
from serve.settings import MB


class TextGeneration:
    """Requests to complete a prompt or a chat; the engine makes their texts."""

    paths = (INVOCATIONS, CHAT, COMPLETIONS)

    def __init__(self, model: ModelConfig[TextGenerationOptions]) -> None:
        network, tokenizer, self.upkeep = pretrained.load(
            model, AutoModelForCausalLM, obstacle=decoder.obstacle, merge=merge_products
        )
        alone = decoder.obstacle(network)
        texts = TokenTexts(tokenizer)
        add_end_token(network, tokenizer.eos_token_id)
        prompts = PromptReader(model, texts, network)
        self._invocations, self._openai = InvocationReader(prompts), OpenAIReader(prompts)
        self.caches: PrefixCache | None = None
        if alone is None:
            self.caches = PrefixCache(model.options.prefix_cache_mb * MB)
            self.engine = Engine(network, texts, Decoder(pass_of(network), self.caches), model.max_batch)
        else:  # the model as transformers runs it, one sequence at a time
            independence.report(model.name, network, alone)
            lone = LoneDecoder(network)
            lone.check()
            self.engine = Engine(network, texts, lone, 1)

    def decode(self, request: Request) -> GenerationItem:
        if request.path == INVOCATIONS and not self._openai.reads(request):
            return self._invocations.item(request)
        return self._openai.item(request)

    @property
    def computed(self) -> int:
        return self.engine.computed

    def room(self) -> int:
        return self.engine.room()

    def join(self, job: Job) -> None:
        self.engine.join(job)

    def leave(self, job: Job) -> None:
        self.engine.leave(job)

    def step(self) -> None:
        self.engine.step()
