// A stand-in for NVIDIA's driver and libraries, to run the program where there is no GPU: it keeps memory, streams and events as the
// driver does, on the processor, and computes nothing. What it is for: every call that the program and candle make is made, in its
// order; addresses, sizes, kernels' names and shapes of launches are looked at; copies are late, so that who does not wait for them is
// found out. It ends the program with a message where a GPU would go wrong in silence. Results are zeros.
//
// Built once per library (see .ci/cuda): -DDRIVER, -DRUNTIME, -DBLAS, -DRAND.
// STAND_IN_BYTES is the memory it has (8 GiB at first), STAND_IN_REPORT=1 has it say at the end what it saw, STAND_IN_NAMES=1 each
// kernel that is launched.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifdef DRIVER

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, ALREADY_REGISTERED = 712, NOT_REGISTERED = 713 };

static void die(const char *what) {
    fprintf(stderr, "stand-in: %s\n", what);
    _exit(99);
}

static void late(long microseconds) {
    struct timespec t = {0, microseconds * 1000};
    nanosleep(&t, NULL);
}

// Memory of the device.

struct block {
    uintptr_t at;
    size_t bytes;
    int usable; // from its place in its stream on
    struct block *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *blocks;
static size_t held, peak, allocations, copies, pinned_copies, pinned_bytes, launches, pins;
static size_t memory = (size_t)8 << 30;
static int names;

struct range {
    uintptr_t at;
    size_t bytes;
};
static struct range pinned[4096];

static struct block *find(uintptr_t at, size_t bytes) {
    for (struct block *b = blocks; b; b = b->next)
        if (at >= b->at && at + bytes <= b->at + b->bytes) return b;
    return NULL;
}

static void touch(uintptr_t at, size_t bytes, const char *what) {
    pthread_mutex_lock(&lock);
    struct block *b = find(at, bytes);
    if (!b || !b->usable) die(what);
    pthread_mutex_unlock(&lock);
}

static int is_pinned(const void *p, size_t bytes) {
    uintptr_t at = (uintptr_t)p;
    int yes = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 4096; i++)
        if (pinned[i].bytes && at >= pinned[i].at && at + bytes <= pinned[i].at + pinned[i].bytes) yes = 1;
    pthread_mutex_unlock(&lock);
    return yes;
}

static void drop(uintptr_t at) {
    pthread_mutex_lock(&lock);
    for (struct block **b = &blocks; *b; b = &(*b)->next) {
        if ((*b)->at != at) continue;
        struct block *gone = *b;
        *b = gone->next;
        free((void *)gone->at);
        free(gone);
        pthread_mutex_unlock(&lock);
        return;
    }
    die("what is freed was never allocated");
}

// What is freed in a stream serves the next allocation in it, although it is not its turn yet.
static void give_back(uintptr_t at) {
    pthread_mutex_lock(&lock);
    struct block *b = find(at, 0);
    if (!b || b->at != at) die("what is freed was never allocated");
    held -= b->bytes;
    pthread_mutex_unlock(&lock);
}

// Streams: a thread each, that does one thing after another.

struct event {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    long asked, done;
};

enum kind { ALLOC, FREE, SET, UP, DOWN, ACROSS, RECORD, AWAIT, LAUNCH };

struct op {
    enum kind kind;
    uintptr_t to, from;
    size_t bytes;
    int value, owned;
    struct event *event;
    long ticket;
    struct op *next;
};

struct stream {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    struct op *first, *last;
    int busy, over;
    struct stream *next;
};

static struct stream *streams;

static void perform(struct op *op) {
    switch (op->kind) {
    case ALLOC:
        pthread_mutex_lock(&lock);
        struct block *b = find(op->to, op->bytes);
        if (!b) die("an allocation was freed before its turn");
        b->usable = 1;
        pthread_mutex_unlock(&lock);
        break;
    case FREE:
        drop(op->to);
        break;
    case SET:
        touch(op->to, op->bytes, "memory is set outside of what is allocated at the time");
        memset((void *)op->to, op->value, op->bytes);
        break;
    case UP:
        late(1000);
        touch(op->to, op->bytes, "a copy to the device ends outside of what is allocated at the time");
        memcpy((void *)op->to, (void *)op->from, op->bytes);
        if (op->owned) free((void *)op->from);
        break;
    case DOWN:
        touch(op->from, op->bytes, "a copy from the device begins outside of what is allocated at the time");
        memcpy((void *)op->to, (void *)op->from, op->bytes);
        break;
    case ACROSS:
        touch(op->from, op->bytes, "a copy on the device begins outside of what is allocated at the time");
        touch(op->to, op->bytes, "a copy on the device ends outside of what is allocated at the time");
        memmove((void *)op->to, (void *)op->from, op->bytes);
        break;
    case RECORD:
        pthread_mutex_lock(&op->event->lock);
        if (op->event->done < op->ticket) op->event->done = op->ticket;
        pthread_cond_broadcast(&op->event->cond);
        pthread_mutex_unlock(&op->event->lock);
        break;
    case AWAIT:
        pthread_mutex_lock(&op->event->lock);
        while (op->event->done < op->ticket) pthread_cond_wait(&op->event->cond, &op->event->lock);
        pthread_mutex_unlock(&op->event->lock);
        break;
    case LAUNCH:
        late(10);
        break;
    }
}

static void *live(void *arg) {
    struct stream *s = arg;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->first && !s->over) pthread_cond_wait(&s->cond, &s->lock);
        if (!s->first) break;
        struct op *op = s->first;
        s->first = op->next;
        s->busy = 1;
        pthread_mutex_unlock(&s->lock);
        perform(op);
        free(op);
        pthread_mutex_lock(&s->lock);
        s->busy = 0;
        pthread_cond_broadcast(&s->cond);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static void await(struct stream *s) {
    if ((uintptr_t)s <= 2) return;
    pthread_mutex_lock(&s->lock);
    while (s->first || s->busy) pthread_cond_wait(&s->cond, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

// The streams that everybody has are served at once.
static int put(struct stream *s, struct op value) {
    if ((uintptr_t)s <= 2) {
        perform(&value);
        return OK;
    }
    struct op *op = malloc(sizeof *op);
    *op = value;
    op->next = NULL;
    pthread_mutex_lock(&s->lock);
    if (s->first) s->last->next = op;
    else s->first = op;
    s->last = op;
    pthread_cond_broadcast(&s->cond);
    pthread_mutex_unlock(&s->lock);
    return OK;
}

int cuStreamCreate(struct stream **s, unsigned flags) {
    *s = calloc(1, sizeof **s);
    pthread_mutex_init(&(*s)->lock, NULL);
    pthread_cond_init(&(*s)->cond, NULL);
    pthread_mutex_lock(&lock);
    (*s)->next = streams;
    streams = *s;
    pthread_mutex_unlock(&lock);
    return pthread_create(&(*s)->thread, NULL, live, *s) ? OUT_OF_MEMORY : OK;
}
int cuStreamSynchronize(struct stream *s) { return await(s), OK; }
// What is asked for is done before it goes; the list keeps it.
int cuStreamDestroy_v2(struct stream *s) { return await(s), OK; }
int cuStreamIsCapturing(struct stream *s, int *status) { return *status = 0, OK; }
int cuCtxSynchronize(void) {
    for (struct stream *s = streams; s; s = s->next) await(s);
    return OK;
}

int cuEventCreate(struct event **e, unsigned flags) {
    *e = calloc(1, sizeof **e);
    pthread_mutex_init(&(*e)->lock, NULL);
    pthread_cond_init(&(*e)->cond, NULL);
    return OK;
}
// Others may still wait for it.
int cuEventDestroy_v2(struct event *e) { return OK; }
int cuEventRecord(struct event *e, struct stream *s) {
    pthread_mutex_lock(&e->lock);
    long ticket = ++e->asked;
    pthread_mutex_unlock(&e->lock);
    return put(s, (struct op){.kind = RECORD, .event = e, .ticket = ticket});
}
int cuStreamWaitEvent(struct stream *s, struct event *e, unsigned flags) {
    pthread_mutex_lock(&e->lock);
    long ticket = e->asked;
    pthread_mutex_unlock(&e->lock);
    return put(s, (struct op){.kind = AWAIT, .event = e, .ticket = ticket});
}

int cuMemAllocAsync(uintptr_t *p, size_t bytes, struct stream *s) {
    pthread_mutex_lock(&lock);
    if (held + bytes > memory) {
        pthread_mutex_unlock(&lock);
        return OUT_OF_MEMORY;
    }
    struct block *b = malloc(sizeof *b);
    *b = (struct block){.at = (uintptr_t)calloc(1, bytes + 1), .bytes = bytes, .next = blocks};
    blocks = b;
    held += bytes;
    allocations++;
    if (held > peak) peak = held;
    *p = b->at;
    pthread_mutex_unlock(&lock);
    return put(s, (struct op){.kind = ALLOC, .to = *p, .bytes = bytes});
}
int cuMemAlloc_v2(uintptr_t *p, size_t bytes) { return cuMemAllocAsync(p, bytes, NULL); }
int cuMemFreeAsync(uintptr_t p, struct stream *s) { return give_back(p), put(s, (struct op){.kind = FREE, .to = p}); }
int cuMemFree_v2(uintptr_t p) { return give_back(p), drop(p), OK; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { return *free_bytes = memory - held, *total = memory, OK; }
int cuMemsetD8Async(uintptr_t p, unsigned char value, size_t bytes, struct stream *s) {
    return put(s, (struct op){.kind = SET, .to = p, .bytes = bytes, .value = value});
}

// From memory that may move, the driver has taken its copy when the call returns; from pinned memory it takes it when it comes to it.
int cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t bytes, struct stream *s) {
    int stays = is_pinned(from, bytes);
    pthread_mutex_lock(&lock);
    copies++;
    if (stays) pinned_copies++, pinned_bytes += bytes;
    pthread_mutex_unlock(&lock);
    struct op op = {.kind = UP, .to = to, .from = (uintptr_t)from, .bytes = bytes};
    if (!stays) {
        op.owned = 1;
        op.from = (uintptr_t)malloc(bytes + 1);
        memcpy((void *)op.from, from, bytes);
    }
    return put(s, op);
}
int cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t bytes, struct stream *s) {
    put(s, (struct op){.kind = DOWN, .to = (uintptr_t)to, .from = from, .bytes = bytes});
    if (!is_pinned(to, bytes)) await(s);
    return OK;
}
int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, struct stream *s) {
    return put(s, (struct op){.kind = ACROSS, .to = to, .from = from, .bytes = bytes});
}
int cuMemcpyPeerAsync(uintptr_t to, void *c, uintptr_t from, void *d, size_t bytes, struct stream *s) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, s);
}

int cuMemHostRegister_v2(void *p, size_t bytes, unsigned flags) {
    int result = OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 4096 && result == OUT_OF_MEMORY; i++)
        if (pinned[i].bytes && (uintptr_t)p < pinned[i].at + pinned[i].bytes && (uintptr_t)p + bytes > pinned[i].at) result = ALREADY_REGISTERED;
    for (int i = 0; i < 4096 && result == OUT_OF_MEMORY; i++)
        if (!pinned[i].bytes) pinned[i] = (struct range){(uintptr_t)p, bytes}, pins++, result = OK;
    pthread_mutex_unlock(&lock);
    return result;
}
int cuMemHostUnregister(void *p) {
    int result = NOT_REGISTERED;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 4096; i++)
        if (pinned[i].bytes && pinned[i].at == (uintptr_t)p) pinned[i].bytes = 0, pins--, result = OK;
    pthread_mutex_unlock(&lock);
    return result;
}

// Kernels: names are looked up in the PTX; launches are of a shape that a GPU takes.

int cuModuleLoadData(char **module, const void *image) { return *module = strdup(image), OK; }
int cuModuleLoad(char **module, const char *name) { return NOT_FOUND; }
int cuModuleUnload(char *module) { return OK; }
int cuModuleGetFunction(char **function, char *module, const char *name) {
    char entry[512];
    snprintf(entry, sizeof entry, ".entry %s(", name);
    *function = strstr(module, entry);
    if (!*function) fprintf(stderr, "stand-in: there is no kernel \"%s\"\n", name);
    return *function ? OK : NOT_FOUND;
}
int stand_in_launch(struct stream *s) {
    __sync_fetch_and_add(&launches, 1);
    return put(s, (struct op){.kind = LAUNCH});
}
int cuLaunchKernel(char *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, struct stream *s,
                   void **params, void **extra) {
    int fits = gx && gy && gz && bx && by && bz && gx < 1u << 31 && gy < 65536 && gz < 65536 && (size_t)bx * by * bz <= 1024 && bz <= 64;
    if (!fits || !f || shared > 49152) {
        fprintf(stderr, "stand-in: %.60s is launched as (%u %u %u) of (%u %u %u), %u bytes\n", f, gx, gy, gz, bx, by, bz, shared);
        return INVALID_VALUE;
    }
    if (names) fprintf(stderr, "stand-in: launch %.*s\n", (int)strcspn(f + 7, "("), f + 7);
    return stand_in_launch(s);
}

// The device itself.

static void report(void) {
    if (!getenv("STAND_IN_REPORT")) return;
    cuCtxSynchronize();
    fprintf(stderr, "stand-in: allocations %zu peak_bytes %zu copies %zu pinned_copies %zu pinned_bytes %zu launches %zu pins_left %zu\n",
            allocations, peak, copies, pinned_copies, pinned_bytes, launches, pins);
}
int cuInit(unsigned flags) {
    static int begun;
    if (!__sync_bool_compare_and_swap(&begun, 0, 1)) return OK;
    names = getenv("STAND_IN_NAMES") != NULL;
    if (getenv("STAND_IN_BYTES")) memory = strtoull(getenv("STAND_IN_BYTES"), NULL, 10);
    atexit(report);
    return OK;
}
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal == 0 ? OK : 101; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { return *value = 1, OK; } // it has memory pools
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &blocks, OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
int cuCtxDestroy_v2(void *context) { return OK; }
static __thread void *current;
int cuCtxGetCurrent(void **context) { return *context = current, OK; }
int cuCtxSetCurrent(void *context) { return current = context, OK; }
int cuGetErrorString(int error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : error == 101 ? "invalid device ordinal" : "an error of the stand-in";
    return OK;
}

#endif
#ifdef RUNTIME

int stand_in_launch(void *stream); // in the driver

// What candle's own launchers ask of CUDA's runtime.
void **__cudaRegisterFatBinary(void *f) { return calloc(1, sizeof(void *)); }
void __cudaRegisterFatBinaryEnd(void **f) {}
void __cudaUnregisterFatBinary(void **f) {}
void __cudaRegisterFunction(void **h, const char *f, char *d, const char *n, int t, void *a, void *b, void *c, void *e, int *w) {}
void __cudaRegisterVar(void **h, char *v, char *d, const char *n, int e, size_t s, int c, int g) {}
int __cudaGetKernel(void **kernel, const void *entry) { return *kernel = (void *)entry, 0; }
struct shape {
    unsigned x, y, z;
};
static __thread struct {
    struct shape grid, block;
    size_t shared;
    void *stream;
} call;
unsigned __cudaPushCallConfiguration(struct shape grid, struct shape block, size_t shared, void *stream) {
    call.grid = grid, call.block = block, call.shared = shared, call.stream = stream;
    return 0;
}
int __cudaPopCallConfiguration(struct shape *grid, struct shape *block, size_t *shared, void **stream) {
    return *grid = call.grid, *block = call.block, *shared = call.shared, *stream = call.stream, 0;
}
int __cudaLaunchKernel_ptsz(const void *f, struct shape g, struct shape b, void **args, size_t shared, void *stream) {
    int fits = g.x && g.y && g.z && b.x && b.y && b.z && g.y < 65536 && g.z < 65536 && (size_t)b.x * b.y * b.z <= 1024;
    if (!fits) fprintf(stderr, "stand-in: a launch as (%u %u %u) of (%u %u %u)\n", g.x, g.y, g.z, b.x, b.y, b.z), _Exit(99);
    return stand_in_launch(stream);
}
int cudaFuncSetAttribute(const void *f, int attribute, int value) { return 0; }
int cudaGetDevice(int *device) { return *device = 0, 0; }

#endif
#ifdef BLAS

int cublasCreate_v2(void **handle) { return *handle = calloc(1, 8), 0; }
int cublasDestroy_v2(void *handle) { return free(handle), 0; }
int cublasSetStream_v2(void *handle, void *stream) { return 0; }
int cublasDgemmStridedBatched(void) { return 0; }
int cublasGemmStridedBatchedEx(void) { return 0; }

#endif
#ifdef RAND

int curandCreateGenerator(void **generator, int type) { return *generator = calloc(1, 8), 0; }
int curandDestroyGenerator(void *generator) { return free(generator), 0; }
int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) { return 0; }
int curandSetStream(void *generator, void *stream) { return 0; }

#endif
