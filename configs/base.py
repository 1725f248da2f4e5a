"""Every key of every program, with its unit and its default; an experiment file sets only what differs.

A section that selects an algorithm (`model`, `rope`, `search.objective`, `optimizer.schedule`) holds the selector and exactly that
algorithm's arguments, and is replaced as a block: `config.rope = dict(method="yarn", factor=8.0, beta_fast=32.0, beta_slow=1.0)`.
Relative paths start at the folder in which the program is run. jaxrope/schema has the type and range of every key.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference


def get_config() -> ConfigDict:
    """Returns the configuration that every experiment file starts from."""
    config = ConfigDict()
    config.seed = 0  # for everything random, except the prompts of benchmarks that fix their seed: eval.ruler.seed, eval.passkey_compat.seed
    config.model = checkpoint_model(path="")  # the model to start from
    config.rope = dict(method="model")  # "model": rope.json of the checkpoint, else the scaling in its config; "file": path; "preset": name; or a method with its constants, in place of the scaling in its config
    config.target_len = 0  # target length in tokens; 0 = the model's length
    config.original_len = 0  # tokens the rope was trained on; 0 = as in the checkpoint
    config.forward = forward()
    config.data = data()
    config.mesh = dict(data=-1, fsdp=1, context=1, tensor=1)  # devices on each axis; one of them may be -1 (the remaining devices)
    config.eval = evaluation()
    config.train = training()
    config.lora = lora()
    config.optimizer = optimizer()
    config.checkpoint = checkpoint()
    config.search = search()
    config.analysis = analysis()
    config.hosts = hosts()
    config.join = join()
    config.recipe = ()  # stages that jaxrope.train runs in order: (name, "search" | "train" | "join" | "evaluate", (("dotted.key", value), ...)); "{name}" in a string is the folder of an earlier stage
    config.stages = ()  # names of the stages of recipe to run; () = all
    config.sweep = ()  # (("dotted.key", (value, value)), ...): a search, a training or an evaluation runs the product
    return config.lock()  # a misspelt key in an experiment file is an error


def checkpoint_model(path: str, shape: str = "") -> ConfigDict:
    """A model from a checkpoint: a Hugging Face folder, a workdir, or one step of it.

    If `shape` is given (llama2_7b, llama3_8b, mistral_7b, qwen3_8b, qwen3_30b_a3b, olmo3_7b, smollm3_3b or gemma3_4b), the checkpoint must have it, and --compile_only needs no checkpoint.
    """
    section = ConfigDict(dict(source="checkpoint", path=path, shape=shape))
    section.sliding_window = FieldReference("model", field_type=object)  # of all layers: model (as in the checkpoint) | none (every query sees all tokens) | tokens
    return section


def forward() -> ConfigDict:
    """Backends, precision and recomputation of the forward pass (decoder.ForwardSettings)."""
    section = ConfigDict()
    section.attention = "auto"  # auto (by platform and mesh) | reference | blockwise | flash | ring | all_gather | ulysses | usp
    section.attention_kernel = "auto"  # auto | blockwise | flash (TPU) | cudnn (GPU): the kernel on each device, for flash and the last four
    section.attention_block = 512  # tokens in a block of keys or queries
    section.ulysses = 1  # devices of mesh.context that exchange heads in usp; the others form its ring
    section.compute_dtype = "float32"  # float32 | bfloat16: activations and matrix products
    section.remat = "full"  # what a layer keeps for its backward pass: none (everything) | full (its input) | minimal (also products with weights) | save_attention (also the output of attention) | save_mlp (that, projected too, and the first products of a dense MLP) | offload (its input, in host memory)
    section.mlp_chunk = 0  # tokens per device whose MLP activations are in memory at once; 0 = all
    return section


def data() -> ConfigDict:
    """Text and tokens."""
    section = ConfigDict()
    section.train_files = ()  # files or globs: text, JSON Lines, JSON, Parquet, Arrow, packed or not; their content decides, not their names
    section.sources = ()  # in place of train_files: (("files or glob", weight), ...), each with its share of the rows
    section.eval_files = ()  # files or globs, held out
    section.held_out = 0.0  # share of the tokens of train_files, their last documents, that evaluations read, and no search and no training: in place of eval_files
    section.exclude = ()  # globs of files to leave out of train_files, for example those of eval_files
    section.format = "auto"  # auto: by content | text: every file that looks like JSON is one text, as it stands
    section.text_field = ""  # field of a record that holds its text, or its conversation; "" = look for it
    section.skip_bad_lines = 0  # broken records that are tolerated
    section.tokenizer = ""  # MODEL, tokenizer.json or "bytes"; "" = the checkpoint's
    section.cache_dir = ""  # where tokens are cached; "" = the user's cache folder
    section.mode = "chunk"  # chunk: each row is cut from one document | pack: whole documents packed, each attending to itself | concat: documents joined, attending across
    section.long_share = 0.0  # share of the rows (of each source) from long documents, the others from short ones; 0 = length does not matter
    section.long_tokens = 0  # tokens of a long document, at least; 0 = train.seq_len
    section.chat_share = 0.0  # share of those rows that have no needles and are not short, for the conversations in train_files, the others for text; 0 = as they come
    section.needle_share = 0.0  # share of the rows of a batch that are documents of the row's length with magic numbers hidden in text, all asked for at the end
    section.needle_keys = 6  # needles in such a row: 1, 2, ... up to this many, in turn
    section.needle_weight = 1.0  # loss weight of a digit of an answer; all other tokens have weight 1
    section.short_share = 0.0  # share of the rows of a batch that are packed pieces of at most original_len tokens (what its own scaling reaches, if it has one), each attending only to itself, with the original rope (LongRoPE2)
    return section


def evaluation() -> ConfigDict:
    """What jaxrope.evaluate measures, and jaxrope.train during training."""
    section = ConfigDict()
    section.suites = ("perplexity", "passkey")  # evaluators to run
    section.lengths = (512,)  # context lengths in tokens, one column each
    section.label = ""  # name of the configured model's row; "" = the rope's method
    section.methods = ()  # more rows: none | pi | ntk | dynamic_ntk | yarn | sliding, each with its usual constants, on top of the model's own scaling; "yarn@su", "pi@1.1": with this attention factor (a law or a number); or a rope.json
    section.checkpoints = ()  # more rows, from other checkpoints: (label, path, method), method as above or "model": the rope of the checkpoint
    section.rope_len = 0  # tokens for which the factors of `methods` are chosen; 0 = the length of each column
    section.baseline = "yarn"  # row that the others are compared with, if it exists
    section.num_windows = 16  # windows of text at each length
    section.windows_per_doc = 4  # windows from one document, at most
    section.offset_tokens = 0  # tokens skipped at the start of each document
    section.batch_tokens = 8192  # tokens in one forward pass, or in the cache of a batch of answers, at most (at least one window or prompt)
    section.chunk_tokens = 512  # tokens of a prompt per prefill chunk when answers are generated; a multiple of 16 * mesh.context
    section.window = 0  # tokens of a sliding window, in every row; 0 = each length in one window
    section.stride = 128  # tokens by which a sliding window moves; the row "sliding" has a window of what the model itself serves, original_len tokens without a scaling
    section.bos_per_window = True  # every sliding window begins with bos; False: only the first
    section.aggregation = "token_mean"  # token_mean | window_mean | doc_mean
    section.protocol = ""  # protocol of the suite "perplexity": "" = the keys above | proof_pile_yarn | pg19_sliding_256 | books3_256k = the papers' scripts, with their windows, documents and aggregation
    section.protocol_options = dict(
        documents=0,  # number read at each length; 0 = the protocol's
        min_tokens=0,  # least tokens of a document; 0 = the protocol's
        stride=0,  # tokens by which a window moves; 0 = the protocol's; LongRoPE used 4096 for PG19 in long windows
        max_strides=0,  # a document ends after this many strides; 0 = no limit; 10 = as in microsoft/LongRoPE, which thereby scores only 2,560 tokens
        whole_windows=False,  # windows that reach beyond the text are dropped, as in LongRoPE's branch cube_longrope
    )
    section.harness = dict(
        tasks=(),  # of lm-evaluation-harness, for the suite "harness"; --tasks=A,B sets both
        shots=-1,  # few-shot examples; -1 = the Open LLM Leaderboard's 25, 10, 5 and 0 for its four tasks, otherwise the task's default
        limit=0,  # questions of each task; 0 = all
        max_length=0,  # tokens of a request, at most; 0 = the longest of `lengths`
        include_path="",  # folder of additional tasks, as YAML
        chat_template=False,  # apply the tokenizer's chat template to prompts
        allow_truncation=False,  # True: a longer request loses its beginning, with one note; False: it is refused
    )
    section.longppl = dict(
        evaluator="",  # checkpoint that selects the key tokens, with its tokenizer; "" = each row selects its own
        documents=8,  # documents of `lengths` tokens or more, at each length
        context=4096,  # K: tokens of the short context, and the first tokens of a text, which are never key
        window=1024,  # d: tokens that share a short context
        alpha=2.0,  # the loss of a key token falls by more than this with the long context, nats
        beta=-2.0,  # and its log-likelihood is then above this, nats
    )
    section.passkey_trials = 12  # at each length
    section.passkey_filler = "grass"  # grass: the sentences of the paper | text: data.eval_files
    section.passkey_zero_padded = False  # keys start at 00000 instead of 10000
    section.needle_keys = (6,)  # needles in a document of the suite "needle", one of which is asked for; one table per number
    section.needle_trials = 24  # documents at each length and number of keys
    section.needle_filler = "text"  # text: data.eval_files | grass: the sentences of the passkey prompt
    section.passkey_compat = dict(
        trials=0,  # at each length, of "passkey_longrope" and "passkey_yarn"; 0 = as in their scripts: 10 and 20
        seed=42,  # of Python's generator, reset for each length, as in LongRoPE; YaRN sets none
    )
    section.number_string = dict(
        trials=20,  # of "number_string" and "passkey_infinitebench" at each length
        official=False,  # InfiniteBench's numbers of lines, places and repeats, at 8192, 16384, ... 262144 tokens; trials is then ignored
    )
    section.niah = dict(
        trials=1,  # haystacks, each beginning with a different text; each is used with a needle at every depth
        depths=10,  # number of needle positions in each haystack, from 0 to 100%
        depth_spacing="linear",  # linear | sigmoid (denser towards both ends)
        haystack=(),  # files or globs; () = data.eval_files
        needle="\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n",
        question="What is the best thing to do in San Francisco?",
        answer="eat a sandwich and sit in Dolores Park on a sunny day.",  # the part of the needle that is scored
        score="overlap",  # overlap (share of the answer's words) | substring (all or nothing) | rouge1 | fu_compat (as in the original figure: a perfect answer has 11/12)
        max_new_tokens=50,  # of an answer, at most
        compat=False,  # prompts as in the original code: shorter by about buffer, with more than one bos
        buffer=200,  # tokens reserved for question and answer; only with compat
    )
    section.kv = dict(
        trials=20,  # JSON objects at each length
        pairs=0,  # in each object; 0 = as many as fit; Liu et al.: 75, 140, 300
        query_first=False,  # the key is also given before the object
        max_new_tokens=100,  # of an answer, at most
    )
    section.lines = dict(
        trials=20,  # records at each length
        lines=0,  # in each record; 0 = as many as fit; LongEval: 200 to 1350
        names="words",  # words (brave-otter) | numbers (1, 2, ...)
        completion=True,  # the prompt ends with the beginning of the answer, as in LongEval for base models
        score="last",  # which number of the answer is scored: last, as in LongEval | first
        max_new_tokens=15,  # of an answer; LongEval: 15 with completion, 100 without
    )
    section.ruler = dict(
        tasks=(),  # of RULER's 13 tasks; () = those that need no file, and those whose files are given here
        lengths=(),  # tokens, for these tasks only; () = config.eval.lengths
        samples=500,  # questions of each task at each length; NVIDIA uses 500
        seed=42,  # NVIDIA's; prompts do not depend on config.seed
        essays=(),  # text files or globs to hide needles in: niah_single_2, niah_single_3, niah_multikey_1, niah_multivalue, niah_multiquery
        squad="",  # SQuAD's dev-v2.0.json, for qa_1
        hotpotqa="",  # HotpotQA's hotpot_dev_distractor_v1.json, for qa_2
        english_words="",  # RULER's english_words.json, for lists of cwe with more than 8,166 words
    )
    section.bootstrap_samples = 10_000  # bootstrap samples of a confidence interval
    return section


def training() -> ConfigDict:
    """The training loop."""
    section = ConfigDict()
    section.seq_len = 512  # tokens in a row
    section.batch_size = 8  # rows in an optimizer step, over all devices
    section.accumulation = 1  # equal parts into which the batch of a step is split
    section.steps = 100  # optimizer steps
    section.log_every = 10  # steps
    section.eval_every = 0  # steps; 0 = only at the end
    section.check_every = 100  # steps between checks that copies of a parameter on different devices are bit-equal; 0 = never
    section.max_bad_steps = 5  # consecutive steps with a non-finite loss or gradient before the run stops
    section.param_dtype = "float32"  # master weights
    section.chunk_tokens = 512  # tokens whose logits are in memory at once
    return section


def lora() -> ConfigDict:
    """What is trained: the whole model, or low-rank adapters with norms and embeddings (LongLoRA); adapters are merged when the checkpoint is read."""
    section = ConfigDict()
    section.rank = 0  # rank of the adapters; 0 = no adapters: everything is trained
    section.alpha = 16.0  # the adapters' update is multiplied by alpha / rank
    section.targets = ("q", "k", "v", "o")  # linear layers with adapters: q | k | v | o | gate | up | down | head
    section.train_norms = True  # also train the norms
    section.train_embeddings = True  # also train the embeddings; the head is trained only if it is tied to them
    return section


def optimizer() -> ConfigDict:
    """AdamW, with the values of LongRoPE's research template."""
    section = ConfigDict()
    section.learning_rate = 2e-5  # at the peak
    section.schedule = dict(name="linear", warmup_steps=20, final_fraction=0.0)  # linear | constant | cosine
    section.b1 = 0.9
    section.b2 = 0.999
    section.eps = 1e-8
    section.weight_decay = 0.0
    section.clip_norm = 1.0  # of the global gradient; 0 = no clipping
    section.offload = False  # moments are kept in host memory, and moved to the devices for an update
    return section


def checkpoint() -> ConfigDict:
    """What is saved, and when."""
    section = ConfigDict()
    section.every = 50  # steps
    section.keep_last = 2  # number of newest checkpoints to keep
    section.keep_every = 0  # multiples of this step are kept permanently; 0 = none
    section.asynchronous = True  # training continues while a checkpoint is written
    return section


def search() -> ConfigDict:
    """The search for factors; `algorithm` is LongRoPE's Algorithm 1 with the constants of section 4.1, all of which longrope_paper.py has."""
    section = ConfigDict()
    section.method = "gradient"  # gradient: descents from the best known methods | evolution: Algorithm 1 | hybrid: descents, then an evolution from their end points
    section.form = "monotone"  # what the factors may be: monotone (ascending) | free (a factor for each pair) | yarn (its two borders and factor) | ntk (a base) | piecewise (the authors' dim_piece_mono) | critical (LongRoPE2: NTK below a critical pair)
    section.gradient = dict(
        steps=18,  # of each descent, and as many more as baselines and ramps need less than is planned; a sample costs three forward passes
        batch=1,  # samples of a step; each step has new ones
        starts=1,  # number of known methods that descents start from, the best first
        ramps=10,  # YaRNs with other borders that are measured, at most, pair by pair while the loss improves: one more start; 0 = none
        rate=1.0,  # of a step: 1 = as far as the spread of the gradients says
    )
    section.judge = dict(
        num_samples=8,  # fresh ones, which chose nothing, on which the best candidates and baselines are judged in the end, and twice as many more where that leaves it open; 0 = on the samples of the objective
        finalists=3,  # candidates of the search that are judged, at most, beside the best baselines
    )
    section.racing = dict(
        first=0,  # samples on which all children are evaluated; those then worse than the worst parent are dropped; 0 = no race
        risk=0.05,  # the probability that the search drops a child that would have become a parent
    )
    section.training_len = 0  # tokens the weights were trained on; factors are bounded by 1.25 * target_len / training_len; 0 = what the model's own scaling reaches, original_len without one
    section.algorithm = dict(
        population=64,  # P
        mutations=16,  # N1
        crossovers=16,  # N2
        parents=32,  # k
        iterations=40,  # T: generations, including the first
        mutation_probability=0.3,  # p, per gene
        crossover_tries=20,  # attempts before a child is made by mutation instead
        step=0.01,  # grid step of the factors
        bound=1.25,  # the largest factor is bound * target_len / training_len
        halve_above=524_288,  # tokens; a longer target halves P, N1, N2 and k; 0 = never
    )
    section.critical_pairs = (0, 0)  # form critical: lowest and highest pair, from 0, that may be critical; 0 = the first with less than 10 turns, and with less than 1 turn, in training_len
    section.start_tokens = (0,)  # candidates for n̂, the number of leading tokens without interpolation; only jaxrope can run a model that has some
    section.attention_factor = FieldReference("free", field_type=object)  # free: searched | one for all candidates: su | yarn | none (laws, times the attention factor of the model's own scaling) | rope (the model's) | a number
    section.objective = dict(name="perplexity", num_samples=2, offset_tokens=0)  # windows of target_len tokens, each from a different document; attention_objective has three more objectives
    section.lowest = 1.0  # the smallest factor of a candidate, of those that multiply the model's own if it is scaled
    section.highest = 0.0  # the largest factor of a candidate, of those that multiply the model's own if it is scaled; 0 = algorithm.bound * target_len / training_len
    section.multiply = False  # second search: its factors multiply those of config.rope, for a model that was fine-tuned with them
    section.seeds = ()  # rope.json files, or workdirs with one: additional seeds, each with its factors for target_len
    section.per_layer = False  # separate factors for every layer: a larger search space, and only jaxrope can run them
    section.prefilter = dict(name="none")  # none | decay | divergence, with oversample=4: this many children are generated for each one evaluated, the one with the best score by formula (search/prefilter.py)
    section.batch_size = 0  # candidates evaluated together; 0 = as memory and the tokens of a device suggest; for a TPU slice --compile_only says what is best
    section.memory_gb = 0.0  # memory available to the search, GiB per device; 0 = ask the device
    section.compare = True  # measure the baselines, which are candidates too
    return section


def join() -> ConfigDict:
    """Combines the factors of several searches, by length, in one rope.json beside a model (the stage "join" of a recipe)."""
    section = ConfigDict()
    section.ropes = ()  # rope.json files, or workdirs with one: a sequence uses the factors of the shortest max_len that it fits into
    section.weights = True  # also a copy of the model's weights, which make the folder a model; False: rope.json alone
    return section


def attention_objective(name: str) -> dict:
    """A search.objective that compares attention in needle documents with that at the trained length: entropy_shift | pattern | needle_mass (search/attention_objective.py)."""
    section = dict(
        name=name,
        num_samples=4,  # documents of target_len tokens, each with a shorter version of the trained length
        num_keys=1,  # needles in each, one of which is asked for
        place="spread",  # start: before the text | spread: anywhere in it
        needle_weight=0.0,  # weight of the answers' loss, nats per token, in the sum; 0 = attention only
    )
    of_heads = dict(
        heads=(),  # (layer, head), from 0, that count; () = all, weighted by the attention mass they give the needle at the trained length
    )
    of_distance = dict(
        view="below",  # below: distances below the trained length | relative: distance / length
        num_queries=16,  # of each text, evenly spaced in its second half
        num_bins=32,  # of distance, equally wide
    )
    return section | (of_distance if name == "pattern" else of_heads)


def analysis() -> ConfigDict:
    """The experiments of jaxrope.analyse (arXiv 2406.13282); lengths are multiples of the pre-trained length."""
    section = ConfigDict()
    section.settings = ("none", "pi", "ntk", "yarn", "abf", "searched")  # ropes, each trained further with train.steps steps of train.batch_size rows of the pre-trained length; searched: by config.search
    section.factor = 16.0  # of pi, ntk, yarn and searched; the lengths below must not exceed it
    section.theta_times = 100.0  # abf: this many times the model's theta
    section.untrained = True  # also measure perplexity and patterns of the settings before that training
    section.perplexity = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # lengths of texts
    section.patterns = (0.5, 1.0, 2.0, 4.0, 8.0)  # lengths at which attention is measured; 0.5 and 2 are the paper's
    section.needles = (1.0, 2.0, 4.0, 8.0, 16.0)  # lengths of the retrieval tasks
    section.sequences = 10  # texts at each length, each from a different document
    section.queries = 64  # tokens of a text whose attention is measured, evenly spaced in its second half
    section.tasks = ("passkey", "needle")  # retrieval tasks: passkey | needle (one of eval.needle_keys)
    section.trials = 12  # questions of each task at each length
    section.depths = 6  # bins of depth in a heat map
    section.haystack = True  # also Fu's needle, once inside the window, to see whether the model can do it
    section.twin_steps = 80  # optimizer steps of the model trained at twice the length with plain rope
    section.longer = 4  # row length of the longer training, which has the same number of tokens
    section.longer_setting = "abf"  # setting that is also trained with longer rows; "" = none
    section.heads = dict(
        setting="yarn",  # setting whose heads are examined beside those of the pre-trained model
        multiple=4.0,  # length at which they are examined
        above=0.1,  # least retrieval score of a retrieval head
        sizes=(1, 2, 4),  # numbers of heads that are masked
        draws=5,  # random sets of other heads that are masked for comparison
    )
    section.second = ()  # (("dotted.key", value), ...): what differs for a second, smaller model; () = none
    return section


def hosts() -> ConfigDict:
    """Timeouts between several processes (jaxrope/mesh/hosts.py)."""
    section = ConfigDict()
    section.timeout_seconds = 300  # the longest wait for another process, at the start and at every barrier
    section.heartbeat_seconds = 100  # a process that is silent for this long is considered dead, and the others exit
    section.work_seconds = 7200  # the longest wait for work that one process does for all, such as caching the tokens
    return section
