"""The causes that findings name: what each means, how it shows, how to confirm it and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass

WRONG_DEVICE = "wrong device context"
PROCESS_GROUP = "dependence on the process group"
THREADS = "state shared by threads"
STREAM_ORDER = "missing stream order"
OVERWRITTEN = "output overwritten by a later call"
KERNEL_CACHE = "stale or mixed kernel cache"
COMPILE_RACE = "compile race"
INTERFERENCE = "interference between ranks"
RANK_ENVIRONMENT = "environment of a rank"
SUSPECT_GPU = "suspect GPU"
RACE = "race or uninitialised read"
STATE = "state kept between calls"
BY_PROCESS = "decided anew in each process"
OUTSIDE = "access outside of tensors"
FALLBACK = "fallback"
OTHER_CONFIGURATION = "not the configuration asked for"
NOT_FROM_INPUTS = "answer not from its inputs"
CHANGES_INPUTS = "changes its inputs"
ALIASED = "output in the memory of an input"
SETTINGS = "leaves settings changed"
NOT_AS_ASKED = "output not as asked"
COMPILE_ERROR = "compile error on this Triton"
RESOURCE_LIMIT = "resource limit"
AUTOTUNED = "autotuned on live tensors"
OUT_OF_MEMORY = "out of memory"
CRASH = "crash"
HANG = "hang"
KERNEL_BUG = "kernel bug"
STRAGGLER = "straggler"
LESS_EXACT = "less exact than its peers"
UNDETERMINED = "undetermined"


@dataclass(frozen=True)
class Cause:
    """What ``gpucheck explain`` prints."""

    means: str
    shows: str
    confirm: str
    mend: str


CAUSES: dict[str, Cause] = {
    WRONG_DEVICE: Cause(
        means="A kernel was launched while another GPU than the one that holds its tensors was the current device. "
        "Triton launches on the current device and never looks at where the tensors live; a rank that allocates on "
        "cuda:RANK without making it current launches on cuda:0. Rank 0 is right by construction.",
        shows="In three ways, by what the process did before. Nothing ever touched device 0: right by luck, since the "
        "driver's context still is the one of the tensors (latent). Device 0 has a context: Triton refuses with "
        "'Pointer argument cannot be accessed from Triton (cpu tensor?)', though no tensor is on the CPU. Peer "
        "access is on, as after any copy between the two GPUs: the kernel runs on GPU 0, on a stream that does not "
        "wait for the tensors' stream, and silently computes from whatever lies in memory at that moment.",
        confirm="gpucheck run device-context: the launch records name launch device, argument devices and source line; "
        "the same cases under --placement pinned and visible are right.",
        mend="In the library: with torch.cuda.device(x.device): around the launch. In the caller: "
        "torch.cuda.set_device(local_rank) before the first CUDA call of each process and thread. Prove it with the "
        "same command and --patch FILE.",
    ),
    PROCESS_GROUP: Cause(
        means="Host code computes something else as soon as torch.distributed is initialised, or by RANK or "
        "LOCAL_RANK: it takes the group for expert or tensor parallelism though every rank holds the whole model.",
        shows="Right without a process group, wrong with one. With experts sliced by rank, rank 0 computes its share "
        "of the experts, so its text is fluent but poorer; ranks above use wrong experts and babble. Kernels, caches "
        "and GPUs are innocent.",
        confirm="gpucheck run SCENARIO --process-group none, then --process-group initialised, with the same case.",
        mend="Make the caller decide by its own configuration (is expert parallelism on, how many experts does this "
        "rank hold) and not by the existence of a process group.",
    ),
    THREADS: Cause(
        means="Host code of the library or the caller keeps state that several threads of a process share without a "
        "lock: a scratch buffer, an option flag, a half-filled cache, the current allocator.",
        shows="Right with one thread, wrong now and then with several, other launches each time.",
        confirm="gpucheck run flaky: the same launches by one thread and by many; gpucheck audit lists module state.",
        mend="Give each thread its own state, or take a lock around what is shared; in the caller, launch from one "
        "thread until that is done.",
    ),
    STREAM_ORDER: Cause(
        means="A kernel runs on a stream that does not wait for the stream its inputs are produced on, or whose end "
        "nobody waits for before the outputs are read.",
        shows="Right when every launch is waited for, wrong otherwise; NaN or old numbers where the input came late.",
        confirm="gpucheck run order; the same case with synchronised = true in its scenario is right.",
        mend="Launch on torch.cuda.current_stream() of the tensors' device, or make the streams wait for each other "
        "with events (stream.wait_stream) on both sides of the launch.",
    ),
    OVERWRITTEN: Cause(
        means="The output lies in memory that the library keeps and uses again: the next call on other data writes "
        "over it before its reader has come.",
        shows="Right when outputs are read at once, another call's numbers when they are read after it.",
        confirm="gpucheck run order: the cases with a delayed consumer.",
        mend="Return fresh memory, or copy the output out of the scratch buffer before the call returns.",
    ),
    KERNEL_CACHE: Cause(
        means="Triton's cache handed out a kernel that was not compiled from this source for this call: an entry is "
        "damaged, left by other software under the same key, or mixed up with another specialisation.",
        shows="Wrong or raising every time, right with an empty cache.",
        confirm="Run the case with TRITON_CACHE_DIR set to an empty folder; gpucheck doctor names damaged entries.",
        mend="Delete the cache folder (TRITON_CACHE_DIR, else ~/.triton/cache), and give each version of the software "
        "its own; never share one between containers with different images.",
    ),
    COMPILE_RACE: Cause(
        means="Several processes compiled the same kernel into one empty cache at the same time, and one read what "
        "another had not finished to write.",
        shows="Wrong or raising on some ranks with a cold cache, right when a rank fills a cache of its own.",
        confirm="gpucheck run cache-race, several times.",
        mend="Let one process fill the cache before the others start, or give each rank its own TRITON_CACHE_DIR; keep "
        "the cache on a local disk, where a rename is atomic.",
    ),
    INTERFERENCE: Cause(
        means="A rank fails only while other ranks of its node run: they share something that only one may use, or one "
        "of them faulted on the GPU of this one.",
        shows="Right with the other ranks at rest, wrong with them, every time; or a crash or hang that does not come "
        "again, on a GPU where the driver (Xid) names the process of another rank as the one at fault.",
        confirm="gpucheck run SCENARIO --nproc 1 with the same case, then with all ranks.",
        mend="Look for what the ranks share: a file, a port, shared memory, a device they all use. Where another rank "
        "is named, mend that one first.",
    ),
    RANK_ENVIRONMENT: Cause(
        means="The failure follows the environment of a rank (RANK, LOCAL_RANK and what is derived from them), not the "
        "GPU it runs on.",
        shows="Wrong on one rank; right there with another rank's environment, wrong with its own on another GPU.",
        confirm="Compare the environment variables of the ranks, and what host code reads of them.",
        mend="Mend the code that reads the variable, or the launcher that sets it differently on this rank.",
    ),
    SUSPECT_GPU: Cause(
        means="The failure follows the GPU: fresh processes fail on it again and again, whatever rank they are, and "
        "are right on another GPU.",
        shows="One column of the matrix fails, often by one bit, at different places or always at the same one.",
        confirm="Repeat with --repeat 100; nvidia-smi -q shows ECC counters and Xid errors; dcgmi diag -r 3; swap the "
        "GPU's rank by CUDA_VISIBLE_DEVICES and see the failure move along.",
        mend="Take the GPU out of service; nothing computed on it since the last good run can be trusted.",
    ),
    RACE: Cause(
        means="Equal inputs in equal memory give different bits: threads of a kernel race (a missing barrier, atomics "
        "in changing order), or it reads memory that nobody wrote.",
        shows="Repeats differ from each other on one and the same GPU.",
        confirm="Repeat with --repeat 50; compute-sanitizer --tool racecheck or initcheck names the instruction.",
        mend="A barrier, a deterministic reduction, or an initialised buffer in the named kernel.",
    ),
    STATE: Cause(
        means="What a process did before decides whether a call is right: the library keeps something from one call "
        "to the next, such as a scratch buffer, a counter, an option, a plan or scale made for other arguments.",
        shows="Right alone in a fresh process and wrong after certain other cases; or the same calls wrong in each "
        "fresh process, every second one, say, or all from some number on.",
        confirm="The finding names the calls or the case that comes before: run both in one process, in that order "
        "(gpucheck run SCENARIO --case A --case B --nproc 1), and then the second alone.",
        mend="Look for what the named call writes to module or object state, and for caches whose key leaves out an "
        "argument in which the two cases differ; gpucheck audit lists module state. Make it anew in each call.",
    ),
    BY_PROCESS: Cause(
        means="Equal inputs give one result in some processes and another one in others, while all calls of one "
        "process agree: something that a process takes once decides, such as an address, a random seed, a hash "
        "order, the autotuner's choice, or what other processes left or do at that moment.",
        shows="Some fresh processes fail in every call, the others in none, without any change.",
        confirm="Run the case in many processes (--isolate case and repeat in the scenario) with PYTHONHASHSEED=0, "
        "without address randomisation (setarch -R), and with the autotuner's choice fixed, one at a time.",
        mend="Make the choice depend on the arguments alone, or take it once and store it for all processes.",
    ),
    OUTSIDE: Cause(
        means="A kernel reads or writes beyond the tensors it was given, or reads memory that was never written.",
        shows="A guard band around a tensor is changed (write), or outputs change with what lies around a tensor "
        "(read). In a server that is another request's data.",
        confirm="The finding names the tensor; compute-sanitizer --tool memcheck finds what crosses an allocation.",
        mend="Mask the load or store, or pad the named tensor to whole tiles.",
    ),
    FALLBACK: Cause(
        means="The call, or a part of it, was answered without the kernel under test, usually by plain torch code.",
        shows="Right numbers, and no launch of the kernel, fewer launches than the call needs (two for the products of "
        "an expert block, one for each layer and step of a decoding), or the same numbers when it does nothing.",
        confirm="The finding lists what was launched.",
        mend="Look for a swallowed import error or a capability check that turns the kernel off; log it loudly.",
    ),
    OTHER_CONFIGURATION: Cause(
        means="The case asks for a configuration of the kernel (split-k, the persistent kernel, rows of a tile, parts "
        "of the epilogue, pipeline stages), and the library launched another one without saying that it cannot.",
        shows="Right numbers from other code than the case is there to test.",
        confirm="The finding names what was asked for and what was launched; each launch of a record has its "
        "configuration.",
        mend="Make the library take the constraint or raise InapplicableConstraint; look at who overwrites its "
        "options between the choice and the launch.",
    ),
    NOT_FROM_INPUTS: Cause(
        means="The call gave an answer that belongs to other inputs: one that it kept from an earlier call, or that it "
        "finds by where its inputs lie instead of by what they hold.",
        shows="Other inputs, in other memory or in the same, get the answer of the call before; a second call with "
        "equal inputs launches no kernel; a later call gets another answer than a fresh process gives.",
        confirm="The finding says which call got whose answer; call it twice with different inputs of one shape.",
        mend="Do not keep answers between calls: compute each one from the inputs of its call.",
    ),
    CHANGES_INPUTS: Cause(
        means="The call writes to the tensors it was given to read: inputs, weights, scales, routing tables.",
        shows="The answer may be right; whoever uses an input again gets other results.",
        confirm="The finding names the tensor, how many of its elements changed, the first of them, and, where it was "
        "one of several calls of the library, which. Where the reference changes the same tensor, nothing is said.",
        mend="Write to memory of the call's own, or say in its name that it works in place.",
    ),
    ALIASED: Cause(
        means="The output lies in the memory of an input or weight.",
        shows="The numbers are right until someone writes to the one and so changes the other.",
        confirm="The finding names both.",
        mend="Return memory of the call's own.",
    ),
    SETTINGS: Cause(
        means="The call leaves a setting of its thread or process otherwise than it was: the default dtype or device, "
        "a random state, the current device or stream, gradient mode, flags of determinism or precision, environment "
        "variables, the working directory.",
        shows="The numbers are right; what runs next in the process computes something else, or on another device. "
        "gpucheck puts the setting back after each call, so later cases do not show it.",
        confirm="The finding names the setting with its value before and after.",
        mend="Put the setting back (try ... finally), or use the context manager that torch has for it.",
    ),
    NOT_AS_ASKED: Cause(
        means="The numbers are right as far as they can be told, but an output has another shape or dtype than asked "
        "for, lies on another device, leaves gaps in its memory, or its elements share memory.",
        shows="A caller that views, sends or writes to the output fails, or changes elements that it did not mean.",
        confirm="The finding names the output with what it is and what was expected.",
        mend="Return a dense tensor of the shape and dtype asked for, on the device of the inputs.",
    ),
    COMPILE_ERROR: Cause(
        means="The installed Triton does not compile the kernel: the language changed between its version and the one "
        "the kernel was written for.",
        shows="The same compile error on every rank, before any launch.",
        confirm="gpucheck compile --triton shows which versions take the kernel.",
        mend="Use a Triton that the library supports (gpucheck library show), or a library made for this Triton.",
    ),
    AUTOTUNED: Cause(
        means="The first launch of an autotuned kernel runs each of its configurations on the tensors of the call. "
        "What one adds in place is added several times then; what the chosen one does not write, another one "
        "wrote in that call alone.",
        shows="The first call of a process gives other bits than all later ones, in every process.",
        confirm="The launches of the first call: one for each configuration and measurement. With one configuration "
        "the first call is like all others.",
        mend="Let each configuration write the same elements, and give triton.autotune the names of tensors that the "
        "kernel changes in place as restore_value or reset_to_zero; or tune before serving, on other tensors.",
    ),
    RESOURCE_LIMIT: Cause(
        means="The kernel's configuration asks for more shared memory, registers or threads than the GPU has, or the "
        "launch for more blocks than a grid may have: 2,147,483,647 on axis 0, 65,535 on axes 1 and 2.",
        shows="An error that names what is needed and what is there, on every GPU of that kind.",
        confirm="gpucheck compile --target shows the demand of each kernel and launch against each GPU's limit.",
        mend="Smaller tiles, fewer pipeline stages or fewer warps for this GPU; a grid with its long extent on axis 0.",
    ),
    OUT_OF_MEMORY: Cause(
        means="Memory ran out: an allocation on the GPU failed, or the kernel of the host ended the process for want "
        "of memory. Neither harms the GPU, and the next case gets a fresh process.",
        shows="torch.OutOfMemoryError, MemoryError, or SIGKILL while the counter of the out-of-memory killer rose.",
        confirm="The case alone in a fresh process (--case, --isolate case): right there means others held memory.",
        mend="End what else holds the memory (nvidia-smi lists processes), take smaller shapes, or grant the "
        "container more host memory.",
    ),
    CRASH: Cause(
        means="The process that owns the device died, or a kernel did something that its CUDA context did not "
        "survive: an access to memory that is nobody's, a failed assertion. Every later CUDA call of that process "
        "fails, whatever it is; gpucheck goes on with a fresh one.",
        shows="CR in the matrix, on the case that did it alone; the finding names the kernel once a run with launches "
        "that are waited for has pinned it, since a GPU tells of such an error at some later call.",
        confirm="gpucheck run SCENARIO --case ID --debug; compute-sanitizer --tool memcheck names the instruction; "
        "an Xid message of the driver, where its log can be read, stands in the finding.",
        mend="Look at the masks and offsets of the named kernel; in a process that died in host code, at the log of "
        "its rank in the run folder's logs/.",
    ),
    HANG: Cause(
        means="A case gave no result before its deadline.",
        shows="HG in the matrix; the record holds the Python stacks of the process from before it was killed. The "
        "finding names the kernel where a launch never ended.",
        confirm="gpucheck run SCENARIO --case ID --case-timeout 600: a case that ends then is slow and does not hang.",
        mend="In a kernel, look at loops whose end comes from memory, and at waits for other blocks; in host code, "
        "at the place on top of the stack.",
    ),
    KERNEL_BUG: Cause(
        means="The code computes the wrong thing: every rank gives the same wrong bits from the same inputs.",
        shows="A row of the matrix fails, with equal digests on all ranks and in all repeats, in 90 fresh processes or "
        "more: with 99% confidence at least 95% of processes fail, so what each process decides anew is ruled out as "
        "far as it spares one process in 20.",
        confirm="Run the case on the CPU (--device cpu): wrong there too is the source, right there is the compiler or "
        "a code path that only the GPU takes.",
        mend="The title says what is wrong; gpucheck explain has a page for each. Bisect releases or commits of the "
        "library, then of Triton.",
    ),
    STRAGGLER: Cause(
        means="A rank computes the right numbers, but slower than the ranks beside it. Where ranks wait for each "
        "other, as in tensor or expert parallelism, all become as slow as this one.",
        shows="A warning, with no influence on the verdict: over the timed cases its calls take longer than the median "
        "of its peers by the factor that the scenario states (straggler, 1.25 by default). Times are the GPU's own, so "
        "a busy host does not show; differences of a few microseconds are ignored.",
        confirm="gpucheck run SCENARIO --bench measures at length, and each rank's ceilings: low ceilings are the "
        "GPU's, equal ones point at the kernels it launched. nvidia-smi -q -d CLOCK,PERFORMANCE,TEMPERATURE under "
        "load; gpucheck doctor; CUDA_VISIBLE_DEVICES in another order shows whether it follows the GPU.",
        mend="Look for heat, a power cap or locked clocks, for another process on that GPU, for a MIG instance, and "
        "whether the rank's environment makes it take other kernels.",
    ),
    LESS_EXACT: Cause(
        means="A rank computes right numbers, but they lie much further from the reference than those of the ranks "
        "beside it: other kernels, a lower precision on the way, or the first of an error that grows.",
        shows="A warning, with no influence on the verdict: the rank uses at least a tenth of an error bound and ten "
        "times as much of it as the median of its peers, on GPUs of one kind with equal inputs. gpucheck diff holds a "
        "run against a stored one in the same way.",
        confirm="gpucheck report RUN --json FILE has for each case and rank the share of its bound that was used "
        "(tightness). Other seeds show whether it stays; --placement visible and CUDA_VISIBLE_DEVICES in another "
        "order show whether it follows the GPU.",
        mend="Compare the kernels and the configuration that the rank launched with those of its peers; then look for "
        "environment variables that choose a precision, and at the GPU's memory errors.",
    ),
    UNDETERMINED: Cause(
        means="The evidence of the run fits more than one cause.",
        shows="The finding says which observations contradict each other or what was not tried.",
        confirm="Run the experiment that the finding names.",
        mend="Nothing yet: what is mended without a cause comes back.",
    ),
}

NATURES: dict[str, Cause] = {
    "output not written": Cause(
        means="Elements of an output still hold the bytes their memory was filled with before the launch.",
        shows="Whole tiles, or the whole output where the kernel did nothing.",
        confirm="The region of the finding: whole tiles point at the grid or the store's mask, everything at a launch "
        "that never came.",
        mend="Look at how the grid is computed from the shape, and at the mask of the store.",
    ),
    "one bit flipped": Cause(
        means="Each wrong element differs from the right one in a single bit.",
        shows="Few elements, the bit position in the finding.",
        confirm="On one rank only: see 'suspect GPU'. On all ranks: a corrupted weight file or a rounding step.",
        mend="See the cause the finding names.",
    ),
    "0 instead of 1": Cause(
        means="Outputs that are 0 or 1, flags or truth values, are 0 where they should be 1.",
        shows="The region of the finding; every wrong element is 0.",
        confirm="What the flag says of the inputs of those rows: it may be right of a wrong intermediate result.",
        mend="Look at the comparison that makes the flag, and at what it compares.",
    ),
    "1 instead of 0": Cause(
        means="Outputs that are 0 or 1, flags or truth values, are 1 where they should be 0.",
        shows="The region of the finding; every wrong element is 1.",
        confirm="What the flag says of the inputs of those rows: it may be right of a wrong intermediate result.",
        mend="Look at the comparison that makes the flag, and at what it compares.",
    ),
    "0 and 1 exchanged": Cause(
        means="Outputs that are 0 or 1, flags or truth values, are wrong in both directions.",
        shows="The region of the finding.",
        confirm="All elements wrong points at a negation; some of them at rows that stand in each other's places.",
        mend="Look at the comparison that makes the flag, and at the index that it is stored at.",
    ),
    "off by one": Cause(
        means="Integers (ids, counts, places in a table) are one too large or one too small.",
        shows="The finding says in which direction where all share it.",
        confirm="Counts: whether a bound is inclusive; ids: what the first one is called; places: cdiv against floor "
        "division.",
        mend="Look at the comparison or rounding that the number comes from.",
    ),
    "off by the same number": Cause(
        means="All wrong elements differ from the right ones by the same number.",
        shows="The finding says by how much.",
        confirm="Compare the number with what is added somewhere: a bias, the first expert of a rank, the start of a "
        "block.",
        mend="Look at what is added once for all elements, or should be.",
    ),
    "off by one factor": Cause(
        means="All wrong integers are the right ones times one number.",
        shows="The finding says which.",
        confirm="2 or 4 is often bytes for elements, or a count made twice.",
        mend="Look at the unit that the number is in, and at what is added up.",
    ),
    "wrong sign": Cause(
        means="Nearly all wrong elements have the right size and the other sign.",
        shows="The region of the finding: everything, or what was negative or positive.",
        confirm="Only what should be negative: a lost sign bit or an absolute value; everything: a negation.",
        mend="Look at the order of a subtraction, and at casts from formats with a sign to ones without.",
    ),
    "Inf": Cause(
        means="Wrong elements are infinite.",
        shows="The finding says where they start and how many there are.",
        confirm="Only where the right values are large: overflow of an intermediate format; elsewhere a division by "
        "zero.",
        mend="Look at the dtype of accumulators and at the order of scaling.",
    ),
    "values in another order": Cause(
        means="Each wrong row holds the right integers, but not in the right places.",
        shows="The finding says which rows.",
        confirm="Whether the order of equal keys is defined at all, and whether the sort is stable.",
        mend="Look at the comparison of the sort, and at how equal keys are put in order.",
    ),
    "rows permuted": Cause(
        means="Rows of the output are right, but stand in each other's places.",
        shows="Every wrong row equals the reference of another row, often at a fixed distance.",
        confirm="The finding says how many rows moved, and how far where they moved alike.",
        mend="Look at the gather or scatter index and at the order of a token's experts.",
    ),
    "wrong expert": Cause(
        means="Whole experts are wrong and all others right: their rows met another expert's weights, or none.",
        shows="The region says 'exactly experts ...'.",
        confirm="Swapped experts come in pairs; missing ones lie at one end.",
        mend="Look at the expert id the kernel loads, at the histogram and at how weights were loaded or sharded.",
    ),
    "wrong scale": Cause(
        means="Nearly all wrong elements are the right ones times one factor.",
        shows="The factor is often a power of two.",
        confirm="Look at per-tensor scales, block scales off by one, and at gates applied twice or never.",
        mend="Pass the scale of this call; see whether a scale object is shared and changed between calls.",
    ),
    "zero instead of the result": Cause(
        means="Nearly all wrong elements are zero.",
        shows="Whole experts, tiles or rows of zeros.",
        confirm="The region of the finding; zeros are what memory holds that was cleared and never written, and what a "
        "sum over no terms gives.",
        mend="Look at what is left out: an expert that this rank does not hold, a tile outside of the grid, a mask.",
    ),
    "wrong operand": Cause(
        means="The whole output has nothing to do with the right one: an operand was another tensor.",
        shows="Nearly all elements wrong, no correlation with the reference.",
        confirm="Stale scales or weights of an earlier call, a wrong layout, a transposed operand.",
        mend="Look at what the call passes, and at what the library caches between calls.",
    ),
    "part of each sum missing or counted twice": Cause(
        means="Outputs resemble the right ones, but terms of each sum are missing or double.",
        shows="All elements off, by a share of their size that is about the square root of the missing part.",
        confirm="Vary k: multiples of the block size right, others wrong points at the tail.",
        mend="Look at the loop over k (cdiv against floor division) and at the mask of its last block.",
    ),
    "lower precision than asked": Cause(
        means="Outputs are right but for lost digits: accumulated, stored or multiplied in a smaller format.",
        shows="Small errors everywhere, beyond what the asked precision allows.",
        confirm="TF32 loses 13 bits of each operand, an fp16 accumulator 13 bits of the sum, a bf16 partial sum 16.",
        mend="allow_tf32, the accumulator's dtype, the dtype of split-k scratch.",
    ),
    "rounded toward zero": Cause(
        means="The last rounding cuts digits off instead of rounding to nearest.",
        shows="Nearly every wrong element is too small in magnitude, by less than one unit in the last place.",
        confirm="The bias in the finding.",
        mend="Look at the final cast: a bit mask or a cast with rounding mode rtz.",
    ),
    "NaN": Cause(
        means="Wrong elements are NaN.",
        shows="The finding says where they start and how many there are.",
        confirm="NaN in whole rows comes from that row's input; NaN in columns from weights or scales read outside.",
        mend="See the cause the finding names.",
    ),
}
"""What a title says of how an output is wrong, explained."""


def described(name: str) -> dict[str, Cause]:
    """The pages on a cause, on what is wrong, or on both that a finding's title names; in any case of letters."""
    pages = {title.lower(): (title, page) for title, page in (*CAUSES.items(), *NATURES.items())}
    parts = (part.strip().lower() for part in name.split(":"))
    return dict(pages[part] for part in parts if part in pages)
