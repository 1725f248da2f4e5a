"""Every key of every program, with its unit and its default; an experiment file says only what differs.

A section that selects an algorithm (`model`, `rope`, `search.objective`, `search.algorithm`, `optimizer.schedule`) holds the selector and exactly that
algorithm's arguments, and is replaced as a block: `config.rope = dict(method="yarn", factor=8.0, ...)`.
A path may be relative to the folder the program is started in.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference


def get_config() -> ConfigDict:
    """Returns the configuration that every experiment file starts from."""
    config = ConfigDict()
    config.seed = 0  # one seed for everything random, but for prompts that follow a benchmark's own: eval.ruler.seed, eval.passkey_compat.seed
    config.model = checkpoint_model(path="")  # what to start from
    config.rope = dict(method="model")  # "model": rope.json of the checkpoint, else its own scaling; "file": path; "preset": name; or a method with its constants
    config.target_len = 0  # tokens the model is to be extended to; 0 = the model's own
    config.original_len = 0  # tokens the rope was trained on; 0 = as the checkpoint says
    config.forward = forward()
    config.data = data()
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)  # devices on each axis; one of them may be -1 (the rest)
    config.eval = evaluation()
    config.train = training()
    config.lora = lora()
    config.optimizer = optimizer()
    config.checkpoint = checkpoint()
    config.search = search()
    config.analysis = analysis()
    config.hosts = hosts()
    config.join = join()
    config.recipe = ()  # stages that train.py runs one after another: (name, "search" | "train" | "join" | "evaluate", (("dotted.key", value), ...)); "{name}" in a text is the folder of an earlier one
    config.stages = ()  # names of the stages of recipe that are to run; () = all
    config.sweep = ()  # (("dotted.key", (value, value)), ...): search.py runs the product
    return config.lock()  # a misspelt key in an experiment file is an error


def checkpoint_model(path: str, shape: str = "") -> ConfigDict:
    """Start from a checkpoint: a Hugging Face folder, a workdir, or one step of it.

    It must have the shape llama2_7b, llama3_8b or mistral_7b, if one is given; --compile_only then needs no checkpoint.
    """
    return ConfigDict(dict(source="checkpoint", path=path, shape=shape))


def forward() -> ConfigDict:
    """How the model is run (llama.ForwardSettings)."""
    section = ConfigDict()
    section.attention = "auto"  # auto (by platform and mesh) | reference | blockwise | flash | ring | all_gather | ulysses | usp
    section.attention_kernel = "auto"  # auto | blockwise | flash: one device's part in the last four
    section.attention_block = 512  # tokens in a block of keys or queries
    section.ulysses = 1  # devices of mesh.context that exchange heads in usp; the rest are its ring
    section.compute_dtype = "float32"  # float32 | bfloat16: activations and matrix products
    section.remat = "full"  # what a layer keeps for its backward pass: none (all is kept) | full (its input) | minimal (and products with weights) | save_attention (and what attention gave) | offload (its input, in the host's memory)
    section.mlp_chunk = 0  # tokens of a device whose MLP activations exist at one time; 0 = all
    return section


def data() -> ConfigDict:
    """Text and tokens."""
    section = ConfigDict()
    section.train_files = ()  # files or globs: .txt .jsonl .parquet .gz .zst, ...
    section.eval_files = ()  # files or globs, held out
    section.exclude = ()  # globs of files that train_files leave out, those of eval_files for one
    section.text_field = "text"  # field of a JSONL or Parquet record
    section.skip_bad_lines = 0  # JSONL lines that may be broken before it is an error
    section.tokenizer = ""  # folder, tokenizer.json or "bytes"; "" = the checkpoint's
    section.cache_dir = ""  # where tokens are kept; "" = the user's cache folder
    section.mode = "chunk"  # chunk: one document's tokens a row | pack: whole documents packed
    section.needle_share = 0.0  # of the rows of a batch: documents of the row's length with magic numbers hidden in text, all asked for at the end
    section.needle_keys = 6  # rows with needles have 1, 2, ... up to this many, in turn
    section.needle_weight = 1.0  # what a digit of an answer counts in the loss; every other token of every row counts 1
    section.short_share = 0.0  # of the rows of a batch: packed pieces of at most original_len tokens, each seeing itself alone and turned by the original rope (LongRoPE2)
    return section


def evaluation() -> ConfigDict:
    """What is measured, by evaluate.py and on the way by train.py."""
    section = ConfigDict()
    section.suites = ("perplexity", "passkey")  # which evaluators run
    section.lengths = (512,)  # tokens the model reads; each is a column
    section.label = ""  # name of the configured model's row; "" = the rope's method
    section.methods = ()  # further rows: none | pi | ntk | dynamic_ntk | yarn | sliding, each with its usual constants; "yarn@su", "pi@1.1": with that attention factor; or a rope.json
    section.checkpoints = ()  # further rows from other checkpoints: (label, path, method), method as above or "model": the checkpoint's own rope
    section.rope_len = 0  # tokens for which the factors of `methods` are chosen; 0 = each length's own
    section.baseline = "yarn"  # the row that every other row is compared with, if it is there
    section.num_windows = 16  # windows of text at each length
    section.windows_per_doc = 4  # at most, of one document
    section.offset_tokens = 0  # tokens of each document that are passed over
    section.batch_tokens = 8192  # tokens in one forward pass, or in the cache of a batch that is answered, at most (one window or prompt at least)
    section.chunk_tokens = 512  # tokens of a prompt that are read at one time where answers are generated; a multiple of 16 * mesh.context
    section.window = 0  # tokens in a window that slides over the text, in every row; 0 = each length in one window
    section.stride = 128  # tokens by which a sliding window moves; the row "sliding" has a window of original_len tokens
    section.bos_per_window = True  # every sliding window begins with bos; False: only the first
    section.aggregation = "token_mean"  # token_mean | window_mean | doc_mean
    section.protocol = ""  # how the suite "perplexity" counts: "" as above | proof_pile_yarn | pg19_sliding_256 | books3_256k: as the papers' scripts, with their windows, documents and aggregation in place of those above
    section.protocol_options = dict(
        documents=0,  # read at each length; 0 = the protocol's
        min_tokens=0,  # of such a document; 0 = the protocol's
        stride=0,  # tokens a window moves; 0 = the protocol's; LongRoPE took 4096 for PG19 in long windows
        max_strides=0,  # a document ends after so many strides; 0 = with its text, 10 = as microsoft/LongRoPE does, where it hides all but 2,560 tokens
        whole_windows=False,  # windows that reach beyond the text are left out, as LongRoPE's branch cube_longrope does
    )
    section.harness = dict(
        tasks=(),  # of lm-evaluation-harness, for the suite "harness"; --tasks=A,B sets both
        shots=-1,  # examples before each question; -1 = the Open LLM Leaderboard's 25, 10, 5 and 0 for its four tasks, else the task's own
        limit=0,  # questions of each task; 0 = all
        max_length=0,  # tokens of a request, at most; 0 = the longest of `lengths`
        include_path="",  # folder of further tasks, as YAML
        chat_template=False,  # prompts are put into the tokenizer's chat template
        allow_truncation=False,  # a longer request loses its beginning, which is told once; False: it is refused
    )
    section.longppl = dict(
        evaluator="",  # checkpoint that finds the key tokens, with its own tokenizer; "" = each row for itself
        documents=8,  # of `lengths` tokens or more, read at each length
        context=4096,  # K: tokens of the short context, and the first tokens of a text, which are never key
        window=1024,  # d: tokens that share a short context
        alpha=2.0,  # a key token's loss falls by more than this with the long context, nats
        beta=-2.0,  # and is then below minus this
    )
    section.passkey_trials = 12  # at each length
    section.passkey_filler = "grass"  # grass: the sentences of the paper | text: data.eval_files
    section.passkey_zero_padded = False  # keys from 00000, not from 10000
    section.needle_keys = (6,)  # needles in a document of the suite "needle", one of which is asked; each number is a table of its own
    section.needle_trials = 24  # documents at each length, for each number of keys
    section.needle_filler = "text"  # text: data.eval_files | grass: the sentences of the pass key
    section.passkey_compat = dict(
        trials=0,  # at each length, of "passkey_longrope" and "passkey_yarn"; 0 = as their scripts: 10 and 20
        seed=42,  # of Python's generator, set anew for each length, as LongRoPE does; YaRN sets none
        chars_per_token=3.65,  # characters that LongRoPE takes for a token
        step_chars=128,  # characters by which YaRN lengthens a prompt
    )
    section.number_string = dict(
        trials=20,  # of "number_string" and "passkey_infinitebench" at each length
        official=False,  # InfiniteBench's own numbers of lines, places and repeats, at 8192, 16384, ... 262144 tokens; trials counts for nothing then
    )
    section.niah = dict(
        trials=1,  # haystacks, each beginning with another text; every one has a needle at each depth
        depths=10,  # places of the needle in each haystack, from 0 to 100%
        depth_spacing="linear",  # linear | sigmoid: denser towards both ends
        haystack=(),  # files or globs; () = data.eval_files
        needle="\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n",
        question="What is the best thing to do in San Francisco?",
        answer="eat a sandwich and sit in Dolores Park on a sunny day.",  # part of the needle that is looked for
        score="overlap",  # overlap (share of the answer's words) | substring (all or nothing) | rouge1 | fu_compat (as the original's figure: a perfect answer has 11/12)
        max_new_tokens=50,  # of an answer
        compat=False,  # prompts as the original's code makes them: shorter by about buffer, with more than one bos
        buffer=200,  # tokens left free for question and answer; only with compat
    )
    section.kv = dict(
        trials=20,  # JSON objects at each length
        pairs=0,  # of each; 0 = as many as fit; Liu et al.: 75, 140, 300
        query_first=False,  # the key stands before the object, too
        max_new_tokens=100,  # of an answer
    )
    section.lines = dict(
        trials=20,  # records at each length
        lines=0,  # of each; 0 = as many as fit; LongEval: 200 to 1350
        names="words",  # words (brave-otter) | numbers (1, 2, ...)
        completion=True,  # the prompt ends with the beginning of the answer, as LongEval has it for a model without instructions
        score="last",  # the number of the answer that counts: last, as LongEval does | first
        max_new_tokens=15,  # of an answer; LongEval: 15 with completion, 100 without
    )
    section.ruler = dict(
        tasks=(),  # of the suite "ruler": names of its 13 tasks; () = those that need no file, and those whose files are named here
        lengths=(),  # tokens, as config.eval.lengths, for these tasks alone; () = those
        samples=500,  # questions of each task at each length; NVIDIA's number
        seed=42,  # NVIDIA's; prompts do not change with config.seed
        essays=(),  # text files or globs to hide needles in: niah_single_2, niah_single_3, niah_multikey_1, niah_multivalue, niah_multiquery
        squad="",  # SQuAD's dev-v2.0.json, for qa_1
        hotpotqa="",  # HotpotQA's hotpot_dev_distractor_v1.json, for qa_2
        english_words="",  # RULER's english_words.json, for lists of cwe with more than 8,166 words
    )
    section.bootstrap_samples = 10_000  # of an interval
    return section


def training() -> ConfigDict:
    """The training loop."""
    section = ConfigDict()
    section.seq_len = 512  # tokens in a row
    section.batch_size = 8  # rows in an optimizer step, over all devices
    section.accumulation = 1  # equal parts a step's batch is cut into
    section.steps = 100  # optimizer steps
    section.log_every = 10  # steps
    section.eval_every = 0  # steps; 0 = only at the end
    section.check_every = 100  # steps; devices that hold the same part of a parameter must hold the same bits; 0 = never
    section.max_bad_steps = 5  # steps in a row with a non-finite loss or gradient before it stops
    section.param_dtype = "float32"  # master weights
    section.chunk_tokens = 512  # tokens whose logits exist at one time
    return section


def lora() -> ConfigDict:
    """What is trained: all of the model, or adapters of low rank with norms and embeddings (LongLoRA); merged when the checkpoint is read."""
    section = ConfigDict()
    section.rank = 0  # of the adapters; 0 = no adapters: everything is trained
    section.alpha = 16.0  # what adapters add is multiplied by alpha / rank
    section.targets = ("q", "k", "v", "o")  # linear layers with adapters: q | k | v | o | gate | up | down | head
    section.train_norms = True  # whether norms are trained beside adapters
    section.train_embeddings = True  # whether embeddings are; the head is not, unless it is tied to them
    return section


def optimizer() -> ConfigDict:
    """AdamW, as LongRoPE's research template has it."""
    section = ConfigDict()
    section.learning_rate = 2e-5  # at the peak
    section.schedule = dict(name="linear", warmup_steps=20, final_fraction=0.0)  # linear | constant | cosine
    section.b1 = 0.9
    section.b2 = 0.999
    section.eps = 1e-8
    section.weight_decay = 0.0
    section.clip_norm = 1.0  # of the global gradient; 0 = no clipping
    section.offload = False  # moments are kept in the memory of the hosts, and moved for an update
    return section


def checkpoint() -> ConfigDict:
    """What is saved, and when."""
    section = ConfigDict()
    section.every = 50  # steps
    section.keep_last = 2  # newest checkpoints kept
    section.keep_every = 0  # steps whose multiples are kept for ever; 0 = none
    section.asynchronous = True  # training goes on while it is written
    return section


def search() -> ConfigDict:
    """The search for factors (LongRoPE, Algorithm 1, with the constants of section 4.1)."""
    section = ConfigDict()
    section.method = "evolution"  # evolution: Algorithm 1 | gradient: descents from the best known methods | hybrid: descents, then an evolution from where they end
    section.gradient = dict(
        steps=60,  # of each descent; a step costs three forward passes over its samples
        batch=1,  # samples of a step; no other step has them
        starts=1,  # known methods that descents start from, the best first
        ramp_moves=3,  # YaRN's ramp moved by a pair at each end at most so often, while that is better: one more start; 0 = none
        learning_rate=0.1,  # of Adam in the slopes of ln(factors), falling to 0 as a half cosine
        attention_rate=0.01,  # of Adam in ln(attention factor), between the least and the greatest of attention_multiples
        b1=0.9,
        b2=0.95,
    )
    section.racing = dict(
        first=0,  # samples that all children see; who then is worse than the worst parent is spared the rest; 0 = no race
        risk=0.05,  # the probability that the search loses a child so that would have become a parent
    )
    section.training_len = 0  # tokens the weights were trained on; factors are bounded by 1.25 * target_len / training_len; 0 = original_len
    section.algorithm = dict(
        name="monotone",  # monotone: Algorithm 1 | piecewise: the authors' dim_piece_mono | critical: LongRoPE2, see critical_search
        population=64,  # P
        mutations=16,  # N1
        crossovers=16,  # N2
        parents=32,  # k
        iterations=40,  # T: the generations, the first one counted
        mutation_probability=0.3,  # p, of a gene
        crossover_tries=20,  # before a child is made by mutation instead
        step=0.01,  # grid of the factors
        bound=1.25,  # the largest factor is bound * target_len / training_len
        halve_above=524_288,  # tokens; a longer target halves P, N1, N2 and k; 0 = never
    )
    section.start_tokens = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)  # n̂ is one of these
    section.attention_factor = FieldReference("su", field_type=object)  # su | yarn | a number: of every candidate of a search, times attention_multiples
    section.attention_multiples = (1.0,)  # a candidate's attention factor is attention_factor times one of these
    section.objective = dict(name="perplexity", num_samples=5, offset_tokens=0)  # windows of target_len tokens, each of another document; attention_objective has three more
    section.highest = 0.0  # the largest factor that a candidate may have; 0 = algorithm.bound * target_len / training_len
    section.multiply = False  # a second search: its factors multiply those of config.rope, for a model that was fine-tuned with these
    section.seeds = ()  # rope.json files, or workdirs with one: more seeds, each with its factors for target_len
    section.per_layer = False  # every layer has factors of its own: more to search, and jaxrope alone can run them
    section.prefilter = dict(name="none")  # none | decay | divergence, with oversample=4: so many children are bred for each that is evaluated, the one with the best score by formula (search/prefilter.py)
    section.batch_size = 0  # candidates evaluated together; 0 = as memory allows
    section.memory_gb = 0.0  # memory the search may plan with, GiB on each device; 0 = ask the device
    section.compare = True  # score every baseline with its own and with the search's attention factor
    return section


def join() -> ConfigDict:
    """Factors of several searches in one rope.json beside a model, by length (the stage "join" of a recipe)."""
    section = ConfigDict()
    section.ropes = ()  # rope.json files, or workdirs with one: a sequence takes the factors of the shortest max_len that it fits into
    return section


def critical_search() -> ConfigDict:
    """LongRoPE2's search.algorithm: NTK below the critical pair, factors in [s, 2s] from it on; its Algorithms 1 and 2."""
    section = ConfigDict(search().algorithm.to_dict() | dict(name="critical", bound=2.0))
    section.critical_low = 0  # rotary pair, from 0: the lowest that may be critical; 0 = the first with less than 10 turns in training_len
    section.critical_high = 0  # rotary pair: the highest that may be; 0 = the first with less than 1 turn, the theoretical one; equal to critical_low: this pair alone
    return section


def attention_objective(name: str) -> dict:
    """A search.objective that looks at attention in needle documents, beside the trained length's: entropy_shift | pattern | needle_mass (search/attention_objective.py)."""
    section = dict(
        name=name,
        num_samples=4,  # documents of target_len tokens, each with a shorter twin of the trained length
        num_keys=1,  # needles in each, one of which is asked for
        place="spread",  # start: before the text | spread: anywhere in it
        needle_weight=0.0,  # the answers' loss, nats a token, is added times this; 0 = attention alone
    )
    of_heads = dict(
        heads=(),  # (layer, head) that count, from 0; () = all, each by the share of attention that it gives the needle at the trained length
    )
    of_distance = dict(
        view="below",  # below: distances below the trained length | relative: distance / length
        num_queries=16,  # of each text, evenly in its second half
        num_bins=32,  # of distance, equally wide
    )
    return section | (of_distance if name == "pattern" else of_heads)


def analysis() -> ConfigDict:
    """The experiments of python -m jaxrope.analyse (arXiv 2406.13282); lengths are multiples of the pre-trained one."""
    section = ConfigDict()
    section.settings = ("none", "pi", "ntk", "yarn", "abf", "searched")  # ropes, each trained on with train.steps steps of train.batch_size rows of the pre-trained length; searched: by config.search
    section.factor = 16.0  # of pi, ntk, yarn and searched; no length below is beyond it
    section.theta_times = 100.0  # abf has so many times the model's theta
    section.untrained = True  # perplexity and patterns of the settings before that training, too
    section.perplexity = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # lengths of texts
    section.patterns = (0.5, 1.0, 2.0, 4.0, 8.0)  # lengths at which attention is read; 0.5 and 2 are the paper's
    section.needles = (1.0, 2.0, 4.0, 8.0, 16.0)  # lengths of retrieval
    section.sequences = 10  # texts at each length, each of another document
    section.queries = 64  # tokens of a text whose attention is read, evenly in its second half
    section.tasks = ("passkey", "needle")  # what is retrieved: passkey | needle (one of eval.needle_keys)
    section.trials = 12  # questions of each task at each length
    section.depths = 6  # cells of depth in a heat map
    section.haystack = True  # Fu's needle, once inside the window: is it within reach of the model?
    section.twin_steps = 80  # optimizer steps of the model trained at twice the length with plain rope
    section.longer = 4  # length of the rows of the longer training, which has as many tokens
    section.longer_setting = "abf"  # whose training is done with longer rows, too
    section.heads = dict(
        setting="yarn",  # whose heads are looked at beside those of the pre-trained model
        multiple=4.0,  # length at which they are
        above=0.1,  # retrieval score of a retrieval head
        sizes=(1, 2, 4),  # numbers of heads that are masked
        draws=5,  # sets of other heads that are masked for comparison
    )
    section.second = ()  # (("dotted.key", value), ...): what differs for a second, smaller model; () = none
    section.second_settings = ("none", "pi", "ntk", "yarn", "abf")  # its settings
    return section


def hosts() -> ConfigDict:
    """Several processes: how long they wait for each other (jaxrope/mesh/hosts.py)."""
    section = ConfigDict()
    section.timeout_seconds = 300  # the longest wait for another process, at the start and at every meeting point
    section.heartbeat_seconds = 100  # a process that is silent for so long is dead; then the others end
    section.work_seconds = 7200  # the longest wait for what one process does for the others, such as making the cache of tokens
    return section
