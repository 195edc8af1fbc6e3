/* A scripted stand-in for libnvidia-ml.so.1, for tests only: what its parts share.
 *
 * FAKE_NVML_SCRIPT     file; the language is at the top of nvml.py
 * FAKE_NVML_CLOCK      file of one int64, "now" in microseconds; else
 * FAKE_NVML_ORIGIN_NS  the CLOCK_MONOTONIC reading at which script time 0 is
 * FAKE_NVML_PERIOD_MS  refresh period of counter and power (default 100)
 *
 * Energy is integrated in integers: milliwatts times microseconds are nanojoules.
 */
#ifndef FAKE_NVML_H
#define FAKE_NVML_H

#include <stdint.h>

typedef int64_t us_t;
typedef enum {
  OK, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED,
  NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15,
} nvmlReturn_t;

enum {
  MAX_GPUS = 16, MAX_PROCESSES = 64, MAX_SEGMENTS = 512, MAX_RESETS = 16, MAX_RELOADS = 8,
  MAX_SLOW = 8, MAX_INSTANCES = 8, MAX_GENERATIONS = 256, WHOLE_BOARD = -1,
};
#define US_PER_S 1000000
#define NEVER INT64_MAX
#define STAMP_EPOCH_US 1700000000000000ull

typedef struct {
  us_t on, off;
} Span;

typedef struct {
  int graphics, instance;
  unsigned pid, sm;
  unsigned long long bytes;
  us_t on, off;
} Process;

/* A value that holds from `at` on, until the next: milliwatts, or percent. */
typedef struct {
  int count;
  us_t at[MAX_SEGMENTS];
  int64_t value[MAX_SEGMENTS];
} Steps;

typedef struct {
  int used, id, sms, slices;
  Steps activity;
} Instance;

typedef struct {
  int used, noenergy, nopower, nofields, noinstant, mig, gpm;
  char name[96], uuid[80];
  int resets, processes, instances;
  Steps power, module;
  us_t reset_at[MAX_RESETS];
  us_t absent, refresh, lag, duty_window, duty_period;
  Span lost, present, bump, stuck, garbage;
  int64_t bump_mj;
  Process process[MAX_PROCESSES];
  Instance instance[MAX_INSTANCES];
} Gpu;

/* A handle is good for one generation: until NVML is initialized anew. */
typedef struct {
  int gpu, generation, instance;
} Handle, *nvmlDevice_t;

extern Gpu gpus[MAX_GPUS];
extern us_t reload_at[MAX_RELOADS];
extern int reloads;

void load(void);
_Noreturn void die(const char *why);
us_t now_us(void);
us_t default_refresh_us(void);
void dawdle(const char *call);
us_t inside(const Span *span, us_t t);
int64_t value_at(const Steps *steps, us_t t);
int64_t integral(const Steps *steps, us_t from, us_t to);

/* Whether the call may be answered: it takes its scripted time, and its GPU must be there. */
nvmlReturn_t check(const char *call, nvmlDevice_t device, const void *out);
nvmlReturn_t ready(const char *call);
nvmlDevice_t instance_handle(nvmlDevice_t board, int instance);

#endif
